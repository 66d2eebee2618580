"""A trace as data, as a summary, as a page: nothing in an answer can break any of them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_ensemble.confidence import confidence_of, texts_of
from langchain_ensemble.decoding.records import TokenRecord, TokenTrace
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.trace import Trace, is_tracing, keep, summary, tracing
from langchain_ensemble.trace.summary import LIMIT, decider

NAMES = ("main", "other & <b>", "third")

HOSTILE = [
    b"</script><script>alert(1)</script>",
    b"<!--",
    b"]]>",
    b'" onmouseover="alert(1)',
    b"&lt;img src=x onerror=alert(1)&gt;",
    "\u202egnp.exe".encode(),
    "שלום مرحبا".encode(),
    b"\n\n\t\r",
    b"\x00\x1b[31m\x7f",
    b"\xff\xfe\xe2\x82",
    "\u2028\u2029\ufeff".encode(),
    "👩‍👩‍👧".encode()[:7],
    b"'`${x}\\",
    b"",
]

PROBABILITY = st.floats(0, 1)
KEYS = (
    st.sampled_from(HOSTILE)
    | st.binary(max_size=8)
    | st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace"))
)
WISHES = st.lists(st.tuples(KEYS, PROBABILITY), max_size=5).map(tuple)
LOGPROBS = st.none() | st.floats(-80, 0)
SEEN = st.builds(
    TokenTrace,
    wishes=st.dictionaries(st.sampled_from(NAMES), WISHES),
    fused=WISHES,
    weights=st.dictionaries(st.sampled_from(NAMES), PROBABILITY),
    at=st.floats(0, 1e4),
)
TOKENS = st.builds(
    TokenRecord,
    id=st.none() | st.integers(0, 10**6),
    bytes=KEYS,
    logprob=st.floats(-80, 0),
    members=st.dictionaries(st.sampled_from(NAMES), LOGPROBS, min_size=1),
    fused=st.booleans(),
    gate=st.none() | st.sampled_from(["sure", "consensus", "boundary"]),
    disagreement=st.none() | PROBABILITY,
    overruled=st.none() | st.booleans(),
    drafted=st.booleans(),
    trace=st.none() | SEEN,
)


def made(tokens: list[TokenRecord], prompt: str = "", name: str = "gac(a+b)") -> Trace:
    text = "".join(texts_of(tokens))
    return Trace(name, NAMES, prompt, text, tuple(tokens), "stop", confidence_of(tokens))


TRACES = st.builds(
    made,
    st.lists(TOKENS, max_size=12),
    st.sampled_from([k.decode("utf-8", "replace") for k in HOSTILE]),
    st.sampled_from(["gac(a+b)", "</title><script>alert(1)</script>"]),
)


# data


@settings(max_examples=20)
@given(TRACES)
def test_json_goes_round(trace: Trace) -> None:
    text = trace.to_json()
    assert Trace.from_json(text) == trace
    assert json.loads(text) == trace.to_dict()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON"),
        ("[]", "an object|JSON object"),
        ('{"format": 99}', "format is 99"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "model_name": 3}', "damaged"),
    ],
)
def test_what_is_no_trace_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Trace.from_json(text)


def test_save_writes_a_page_or_json(tmp_path: Path) -> None:
    trace = made([])
    trace.save(tmp_path / "a.HTML")
    trace.save(str(tmp_path / "a.json"))
    assert (tmp_path / "a.HTML").read_text("utf-8") == trace.to_html()
    assert Trace.from_json((tmp_path / "a.json").read_text("utf-8")) == trace
    with pytest.raises(ConfigError, match="cannot write the trace"):
        trace.save(tmp_path / "no" / "folder.html")


# summary


@settings(max_examples=20)
@given(st.lists(TOKENS, max_size=12))
def test_a_summary_says_what_the_tokens_say(tokens: list[TokenRecord]) -> None:
    told = summary(tokens, [0.25] * len(tokens))
    assert json.loads(json.dumps(told)) == told
    count = max(1, len(tokens))
    assert told["tokens"] == len(tokens)
    assert told["share_fused"] == pytest.approx(sum(t.fused for t in tokens) / count, abs=1e-6)
    assert told["drafted"] == sum(t.drafted for t in tokens)
    assert told["milliseconds"] == (250.0 if len(tokens) > 1 else 0.0)
    assert sum(told["gate"].values()) == sum(t.gate is not None for t in tokens)
    named = [t for t in tokens if decider(t) is not None]
    assert sum(told["decided"].values()) == pytest.approx(len(named) / count, abs=1e-5)
    least = sorted(t.logprob for t in tokens if t.logprob is not None)[:5]
    places = [entry["at"] for entry in told["least_sure"]]
    assert sorted(tokens[place].logprob or 0.0 for place in places) == least
    assert places == sorted(places)


def test_names_that_are_cut_alike_are_counted_together() -> None:
    said = [{"a" * 40 + name: -0.1} for name in "xyz"]
    tokens = [TokenRecord(1, b"a", -0.1, members, True) for members in said]
    assert summary(tokens, [0.1] * 3)["decided"] == {"a" * 29 + "…": 1.0}


@pytest.mark.parametrize("text", [b"ordinary", "日本語の長い名前です".encode() * 9, b"\xff" * 90])
def test_a_summary_of_4000_tokens_is_small(text: bytes) -> None:
    names = [f"{number} {text.decode('utf-8', 'replace')} 👩‍👩‍👧" * 9 for number in range(12)]
    tokens = [
        TokenRecord(1, text, -0.001 * n, {names[n % 12]: -0.1}, True, "boundary", 0.5, True, True)
        for n in range(4000)
    ]
    told = json.dumps(summary(tokens, [0.1] * 4000))
    assert len(told.encode()) <= LIMIT


@pytest.mark.parametrize(
    ("members", "weights", "who"),
    [
        ({"a": -0.1, "b": -2.0}, {"a": 0.5, "b": 0.5}, "a"),
        ({"a": -0.1, "b": -0.2}, {"a": 0.3, "b": 0.7}, "b"),
        ({"a": None, "b": -9.0}, {"a": 0.9, "b": 0.1}, "b"),
        ({"a": -0.1, "b": -0.1}, {"a": 0.0, "b": 1.0}, "b"),
        ({"a": None, "b": None}, {}, None),
    ],
)
def test_who_decided(
    members: dict[str, float | None], weights: dict[str, float], who: str | None
) -> None:
    seen = TokenTrace({}, (), weights, 0.0)
    assert decider(TokenRecord(1, b"x", -1.0, members, True, trace=seen)) == who


# page

VOID = {"meta", "rect", "br"}


class Reader(HTMLParser):
    """What a browser would see: elements that are closed in order, their attributes, the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.ids: list[str] = []
        self.at: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name) for name, _ in attrs]
        here = dict(attrs)
        if here.get("id"):
            self.ids.append(str(here["id"]))
        self.at = here.get("id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.at = None

    def handle_data(self, data: str) -> None:
        if self.at:
            self.texts[self.at] = self.texts.get(self.at, "") + data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "dl", "div", "dt"),
    *("dd", "small", "main", "section", "details", "summary", "p", "svg", "rect", "ul", "li", "i"),
    *("b", "span", "aside", "script"),
}


@settings(max_examples=20)
@given(TRACES)
@example(made([TokenRecord(1, data, -0.5, {"main": -0.5}, True) for data in HOSTILE]))
def test_a_page_is_well_formed_and_nothing_in_an_answer_is_markup(trace: Trace) -> None:
    html = trace.to_html()
    html.encode("utf-8")
    page = read(html)
    assert set(page.tags) <= ALLOWED
    assert page.tags.count("script") == 2
    assert page.tags.count("title") == 1
    assert not any(name.startswith("on") or name == "style" for _, name in page.attributes)
    assert not any(name in {"src", "href", "action"} for _, name in page.attributes)
    assert len(set(page.ids)) == len(page.ids)
    shown = "".join(page.texts.get(f"t{place}", "") for place in range(len(trace.tokens)))
    pictures = {chr(0x2400 + n): chr(n) for n in range(32)} | {"\u2421": "\x7f"}
    if not any(char in trace.text for char in pictures):
        found = "".join(pictures.get(char, char) for char in shown)
        assert found == trace.text
    data = json.loads(page.texts["data"])
    assert [row["text"] for row in data["tokens"]] == trace.texts
    assert data["members"] == list(NAMES)


def test_nothing_but_the_one_script_may_run_and_nothing_is_fetched() -> None:
    html = made([]).to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    for text in (*scripts, *styles):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?:|url\(|@import|innerHTML|eval\(", html)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    trace = made([TokenRecord(1, data, -0.5, {"main": -0.5}, True) for data in HOSTILE])
    frame = read(trace._repr_html_())
    assert frame.tags == ["iframe"]

    class Source(HTMLParser):
        source = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.source = dict(attrs)["srcdoc"] or ""

    parser = Source()
    parser.feed(trace._repr_html_())
    assert parser.source == trace.to_html()


# where traces go


def test_traces_go_to_every_block_around_them_and_to_no_other() -> None:
    trace = made([])
    keep(trace)
    assert not is_tracing()
    with tracing() as outer:
        with tracing() as inner:
            keep(trace)
        keep(trace)
        other: list[Any] = []
        thread = threading.Thread(target=lambda: other.append(is_tracing()))
        thread.start()
        thread.join()
    assert (len(inner), len(outer), other) == (1, 2, [False])
    assert not is_tracing()
