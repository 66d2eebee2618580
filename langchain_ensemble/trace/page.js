"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tokens = data.tokens, members = data.members;
  const answer = document.getElementById("answer"), detail = document.getElementById("detail");
  const strip = document.getElementById("strip"), cursor = document.getElementById("cursor");
  const told = document.getElementById("told"), spans = answer.querySelectorAll(".t");
  let selected = -1;

  function make(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  // What a key looks like where nothing else shows it: spaces, controls and stray bytes are visible.
  function visible(key) {
    if (key === null) return "■ end";
    if (Array.isArray(key)) return key.map((b) => "<" + b.toString(16).padStart(2, "0") + ">").join("");
    return key.replace(/[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g, (c) =>
      c === "\n" ? "↵" : c === "\t" ? "⇥" : "<U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + ">"
    ).replace(/ /g, "␣");
  }
  function percent(p) {
    if (p === null || p === undefined) return "–";
    if (p > 0 && p < 0.0005) return "<0.1 %";
    return (100 * p).toFixed(1) + " %";
  }
  function same(a, b) {
    return Array.isArray(a) && Array.isArray(b) ? a.join() === b.join() : a === b;
  }
  function list(title, note, place, wishes, token) {
    const head = make("h3"), name = make("b");
    if (place !== null) name.append(make("i", "", "m" + (place % 6)));
    name.append(title);
    head.append(name, make("span", note));
    const table = make("table");
    for (const [key, p] of wishes) {
      const row = make("tr", null, same(key, token.key) ? "chosen" : "");
      const bar = make("td", null, "bar"), meter = make("i", "", place === null ? "" : "m" + (place % 6));
      meter.style.width = 100 * p + "%";
      bar.append(meter);
      row.append(make("td", (same(key, token.key) ? "✓ " : "") + visible(key)), bar, make("td", percent(p)));
      table.append(row);
    }
    const made = make("section");
    made.append(head, wishes.length ? table : make("p", "had no say"));
    return made;
  }
  function who(token) {
    const by = token.by === null ? "nobody" : members[token.by];
    if (token.gate) return by + " alone (gate: " + token.gate + ")";
    if (!token.fused) return by + " alone";
    return by + (token.overruled ? ", against main" : "");
  }
  function button(text, label, move) {
    const made = make("button", text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", move);
    return made;
  }
  function least(step) {
    const from = selected < 0 ? (step > 0 ? -1 : tokens.length) : selected;
    const unsure = (t) => (t.apart !== null && t.apart > 0.15) || (t.p !== null && t.p < 0.5);
    for (let at = from + step; at >= 0 && at < tokens.length; at += step) {
      if (unsure(tokens[at])) return at;
    }
    return selected;
  }
  function draw(at) {
    const token = tokens[at];
    const nav = make("nav");
    nav.append(
      button("‹", "previous token", () => select(selected - 1)),
      button("‹ unsure", "previous unsure token", () => select(least(-1))),
      button("unsure ›", "next unsure token", () => select(least(1))),
      button("›", "next token", () => select(selected + 1))
    );
    const facts = make("p", "Token " + (at + 1) + " of " + tokens.length + " · decided by " + who(token));
    const more = "Probability " + percent(token.p) + (token.apart === null ? "" : " · members apart " + percent(token.apart)) +
      (token.drafted ? " · drafted" : "") + " · " + token.ms + " ms";
    const lists = make("div", null, "lists");
    if (token.together.length) lists.append(list("Together", "", null, token.together, token));
    token.wishes.forEach((wishes, place) => {
      const weight = token.weights[place];
      lists.append(list(members[place], weight === null ? "" : "× " + weight.toFixed(2), place, wishes, token));
    });
    const parts = [nav, make("h2", visible(token.key)), facts, make("p", more), lists];
    const held = detail.contains(document.activeElement) ? [...detail.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    detail.replaceChildren(...parts);
    if (held >= 0) detail.querySelectorAll("button")[held].focus();
    cursor.setAttribute("x", at);
    cursor.style.visibility = "visible";
  }
  function select(at) {
    if (!tokens.length) return;
    at = Math.max(0, Math.min(tokens.length - 1, at));
    if (selected >= 0) {
      spans[selected].classList.remove("on");
      spans[selected].removeAttribute("aria-selected");
    }
    selected = at;
    spans[at].classList.add("on");
    spans[at].setAttribute("aria-selected", "true");
    answer.setAttribute("aria-activedescendant", spans[at].id);
    draw(at);
    const box = spans[at].getBoundingClientRect();
    const floor = getComputedStyle(detail).position === "fixed" ? detail.getBoundingClientRect().top : innerHeight;
    if (box.top < 0 || box.bottom > floor) spans[at].scrollIntoView({ block: floor < innerHeight ? "start" : "center" });
    const token = tokens[at];
    told.textContent = visible(token.key) + ", " + percent(token.p) + ", decided by " + who(token);
  }
  function number(target) {
    const span = target.closest ? target.closest(".t") : null;
    return span ? Number(span.id.slice(1)) : -1;
  }
  answer.addEventListener("pointerover", (event) => {
    const at = event.pointerType === "mouse" ? number(event.target) : -1;
    if (at >= 0) draw(at);
  });
  answer.addEventListener("pointerleave", () => { if (selected >= 0) draw(selected); });
  answer.addEventListener("click", (event) => {
    const at = number(event.target);
    if (at >= 0) select(at);
  });
  answer.addEventListener("focus", () => { if (selected < 0 && answer.matches(":focus-visible")) select(0); });
  answer.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = 20, ahead = getComputedStyle(answer).direction === "rtl" ? -1 : 1;
    const moves = {
      ArrowRight: selected + ahead, ArrowLeft: selected - ahead, ArrowDown: selected + 1, ArrowUp: selected - 1,
      Home: 0, End: tokens.length - 1, PageDown: selected + page, PageUp: selected - page,
      n: least(1), p: least(-1),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(moves[event.key]);
  });
  function under(event) {
    const box = strip.getBoundingClientRect();
    return Math.floor(((event.clientX - box.left) / box.width) * tokens.length);
  }
  strip.addEventListener("click", (event) => { select(under(event)); answer.focus({ preventScroll: true }); });
  document.getElementById("how").textContent =
    "Point at a token, tap it, or use the arrow keys; n and p go to the next and the previous unsure one.";
})();
