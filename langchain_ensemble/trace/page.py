"""A trace as one page that needs nothing else: no network, no font, no library.

The answer is plain HTML, coloured by agreement, readable where scripts are off; what each member
wanted lies beside it as JSON, which the script turns into text nodes, never into markup. A content
security policy lets nothing run but that script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any

from langchain_ensemble.decoding.records import TokenRecord, Wish
from langchain_ensemble.trace.summary import milliseconds

if TYPE_CHECKING:
    from langchain_ensemble.trace.recording import Trace

LEVELS = (0.05, 0.15, 0.35, 0.6)
"""Disagreements at which a token's colour changes."""

COLOURS = 6
"""How many members have a colour of their own; more share them."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def page(trace: Trace) -> str:
    """Draw a trace.

    Args:
        trace: The trace.

    Returns:
        A whole HTML document.
    """
    style, script = asset("page.css"), asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = escape(shown(trace.model_name))
    prompt = ""
    if trace.prompt:
        told = escape(shown(trace.prompt))
        prompt = f'<details id="prompt"><summary>Prompt</summary><p dir="auto">{told}</p></details>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Trace: {name}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{name}</h1>
<dl id="numbers">{_numbers(trace)}</dl>
</header>
<main>
<section id="said">
{prompt}
<h2>Who decided</h2>
{_strip(trace)}
{_legend(trace)}
<h2 id="answer-title">Answer</h2>
<p id="how">Point at a token, tap it, or use the arrow keys.</p>
<div id="answer" role="listbox" tabindex="0" dir="auto" aria-labelledby="answer-title"
 aria-describedby="how">{_answer(trace)}</div>
</section>
<aside id="detail" aria-label="What the members wanted">
<p class="hint">What each member wanted stands here, token by token.</p>
</aside>
</main>
<p id="told" aria-live="polite"></p>
<script type="application/json" id="data">{_data(trace)}</script>
<script>{script}</script>
</body>
</html>
"""


def shown(text: str) -> str:
    """Give a text with its control characters as pictures; they are no HTML.

    Args:
        text: Any text.
    """
    return _CONTROL.sub(
        lambda found: chr(0x2421 if found[0] == "\x7f" else 0x2400 + ord(found[0])), text
    )


@lru_cache(maxsize=2)
def asset(name: str) -> str:
    """Read a part of the page that is the same for every trace.

    Args:
        name: Of a file beside this one.
    """
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{digest}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _numbers(trace: Trace) -> str:
    tokens, sure = trace.tokens, trace.confidence
    count = max(1, len(tokens))
    kind = "probability of being right" if sure.calibrated else "not calibrated"
    rows = [
        ("Confidence", f"{sure.confidence:.2f}", kind),
        ("Tokens", str(len(tokens)), trace.finish_reason),
        ("Fused", _percent(sum(t.fused for t in tokens) / count), "more than one had a say"),
        ("Apart", _percent(sure.mean_disagreement), "members, on average"),
        ("Overruled", str(sum(t.overruled is True for t in tokens)), "main wanted another"),
        ("Drafted", str(sum(t.drafted for t in tokens)), "before they were chosen"),
        ("Time", f"{milliseconds(trace.seconds):.1f} ms", "a token, after the first"),
    ]
    gates = Counter(token.gate for token in tokens if token.gate is not None)
    rows += [("Gate", str(n), f"main alone: {reason}") for reason, n in sorted(gates.items())]
    return "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for title, value, note in rows
    )


def _places(trace: Trace) -> list[int | None]:
    """Number of the member who decided each token."""
    number = {name: place for place, name in enumerate(trace.members)}
    return [None if name is None else number.get(name) for name in trace.deciders]


def _colour(place: int | None) -> str:
    return "nobody" if place is None else f"m{place % COLOURS}"


def _strip(trace: Trace) -> str:
    count = max(1, len(trace.tokens))
    bars, at = [], 0
    for place, run in groupby(_places(trace)):
        width = len(list(run))
        bars.append(f'<rect class="{_colour(place)}" x="{at}" y="0" width="{width}" height="1"/>')
        at += width
    return (
        f'<svg id="strip" viewBox="0 0 {count} 1" preserveAspectRatio="none" aria-hidden="true">'
        f'{"".join(bars)}<rect id="cursor" x="0" y="0" width="1" height="1"/></svg>'
    )


def _legend(trace: Trace) -> str:
    decided = Counter(_places(trace))
    count = max(1, len(trace.tokens))
    items = [
        f'<li><i class="{_colour(place)}"></i>{escape(shown(name))} '
        f"<b>{_percent(decided[place] / count)}</b></li>"
        for place, name in enumerate(trace.members)
    ]
    swatches = "".join(f'<i class="a{level}"></i>' for level in range(len(LEVELS) + 1))
    items.append(f'<li class="scale">agreed {swatches} apart</li>')
    items.append('<li><span class="o">underlined</span> main wanted another token</li>')
    return f'<ul id="legend">{"".join(items)}</ul>'


def _answer(trace: Trace) -> str:
    return "".join(
        _span(place, token, text)
        for place, (token, text) in enumerate(zip(trace.tokens, trace.texts, strict=True))
    )


def _span(place: int, token: TokenRecord, text: str) -> str:
    names = ["t"]
    if token.disagreement is not None:
        names.append(f"a{sum(token.disagreement > level for level in LEVELS)}")
    if token.overruled:
        names.append("o")
    label = ""
    if not token.bytes:
        names.append("end")
        label = ' aria-label="end of the answer"'
    elif not text:
        names.append("part")
        label = ' aria-label="part of a character"'
    elif "\n" in text:
        names.append("nl")
        label = "" if text.strip() else ' aria-label="line break"'
    elif not text.strip():
        label = ' aria-label="space"'
    body = escape(shown(text))
    return f'<span id="t{place}" role="option" class="{" ".join(names)}"{label}>{body}</span>'


def _data(trace: Trace) -> str:
    names = trace.members
    rows = [
        _row(names, token, text, seconds, place)
        for token, text, seconds, place in zip(
            trace.tokens, trace.texts, trace.seconds, _places(trace), strict=True
        )
    ]
    text = json.dumps({"members": list(names), "tokens": rows}, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _row(
    names: Sequence[str], token: TokenRecord, text: str, seconds: float, place: int | None
) -> dict[str, Any]:
    seen = token.trace
    return {
        "key": _key(token.bytes),
        "text": text,
        "p": _probability(token.logprob),
        "apart": _rounded(token.disagreement),
        "fused": token.fused,
        "overruled": token.overruled is True,
        "gate": token.gate,
        "drafted": token.drafted,
        "ms": round(1000 * seconds, 2),
        "by": place,
        "said": [_probability(token.members.get(name)) for name in names],
        "weights": [] if seen is None else [_rounded(seen.weights.get(name)) for name in names],
        "wishes": [] if seen is None else [_wishes(seen.wishes.get(name, ())) for name in names],
        "together": [] if seen is None else _wishes(seen.fused),
    }


def _wishes(wishes: Sequence[Wish]) -> list[list[Any]]:
    return [[_key(data), _rounded(probability)] for data, probability in wishes]


def _key(data: bytes) -> str | list[int] | None:
    """A key as the script reads it: text, the bytes of what is none, null for END."""
    try:
        return data.decode() if data else None
    except UnicodeDecodeError:
        return list(data)


def _probability(logprob: float | None) -> float | None:
    return None if logprob is None else _rounded(math.exp(min(logprob, 0.0)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
