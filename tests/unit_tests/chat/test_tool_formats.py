"""Every format's grammar allows what the format writes; its reader trusts nothing, however cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_ensemble.chat.call_reader import CallReader, is_object
from langchain_ensemble.chat.conversation import Call, Tool
from langchain_ensemble.chat.tool_formats import CANONICAL, FORMATS, ToolFormat
from langchain_ensemble.constraints.grammar import (
    Grammar,
    Joined,
    JsonSchema,
    Literal,
    OneOf,
    Regex,
    Repeated,
)
from langchain_ensemble.decoding.records import CallDelta
from langchain_ensemble.errors import ConfigError

ALL = (CANONICAL, *FORMATS)
TOOLS = (Tool("get_x", "", {"type": "object", "properties": {"a": {}}}), Tool("put", ""))
EITHER = pytest.mark.parametrize("style", ALL, ids=lambda f: f"{f.name}-{f.syntax.ids}")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
).filter(lambda v: _valid(json.dumps(v, ensure_ascii=False)))
CALLS = st.lists(
    st.builds(
        Call,
        st.just("abcdef012"),
        st.sampled_from(["get_x", "put"]),
        st.dictionaries(st.sampled_from(["a", "ü", '"]}']), JSON, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


def _valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def ends(grammar: Grammar, text: str, at: int) -> Iterator[int]:
    """Where a grammar may end that starts at a place: a second, naive reading of the data."""
    if isinstance(grammar, Literal):
        return iter([at + len(grammar.text)] if text.startswith(grammar.text, at) else [])
    if isinstance(grammar, JsonSchema):
        assert json.loads(grammar.schema)["type"] == "object"
        whole = text[at : at + 1] == "{"
        return iter([json.JSONDecoder().raw_decode(text, at)[1]] if whole else [])
    if isinstance(grammar, Regex):
        found = re.compile(grammar.pattern).match(text, at)
        return iter([found.end()] if found else [])
    if isinstance(grammar, OneOf):
        return (end for option in grammar.options for end in ends(option, text, at))
    if isinstance(grammar, Joined):
        return joined_ends(grammar.parts, text, at)
    assert isinstance(grammar, Repeated)
    return repeated_ends(grammar, text, at)


def joined_ends(parts: tuple[Grammar, ...], text: str, at: int) -> Iterator[int]:
    if not parts:
        yield at
        return
    for middle in ends(parts[0], text, at):
        yield from joined_ends(parts[1:], text, middle)


def repeated_ends(grammar: Repeated, text: str, at: int) -> Iterator[int]:
    for end in ends(grammar.part, text, at):
        yield end
        if text.startswith(grammar.separator, end):
            yield from repeated_ends(grammar, text, end + len(grammar.separator))


def allows(grammar: Grammar, text: str) -> bool:
    return len(text) in ends(grammar, text, 0)


def read(reader: CallReader, pieces: list[str], complete: bool) -> list[tuple[str, str, bool]]:
    """(name, arguments, done) of each call."""
    deltas = [d for piece in pieces for d in reader.feed(piece)] + reader.finish(complete)
    calls: dict[int, tuple[str, str, bool]] = {}
    for d in deltas:
        assert (d.name is not None) == (d.index not in calls), "a name comes first, and once"
        name, arguments, done = calls.get(d.index, (d.name or "", "", False))
        assert not done, "nothing follows the end of a call"
        calls[d.index] = (name, arguments + d.arguments, d.done)
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


def cut(text: str, places: list[int]) -> list[str]:
    points = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(points)]


@EITHER
@given(CALLS, st.booleans(), st.lists(st.integers(0, 500), max_size=8))
def test_what_a_format_writes_its_grammar_allows_and_its_reader_reads(style, calls, ids, places):
    calls = calls if style.syntax.between is not None else calls[:1]
    text = style.write(calls, ids=ids)
    assert text.startswith(style.opening)
    inner = text[len(style.opening) :]
    assert allows(style.whole(TOOLS, parallel=True), text)
    assert allows(style.body(TOOLS, parallel=True), inner)
    assert allows(style.body(TOOLS, parallel=False), inner) == (len(calls) == 1)
    found = read(style.reader(), cut(inner, places), True)
    assert [(name, json.loads(a), done) for name, a, done in found] == [
        (c.name, dict(c.arguments), True) for c in calls
    ]


@EITHER
@given(CALLS, st.integers(1, 400), st.lists(st.integers(0, 500), max_size=8))
def test_a_call_that_was_cut_is_never_done(style, calls, keep, places):
    calls = calls if style.syntax.between is not None else calls[:1]
    inner = style.write(calls)[len(style.opening) :]
    short = inner[: keep % len(inner)]
    for complete in (False, True):
        found = read(style.reader(), cut(short, places), complete)
        done = [f for f in found if f[2]]
        assert len(done) < len(calls) or (style.syntax.end and _closes(style, short))
        for (name, arguments, _), call in zip(done, calls, strict=False):
            assert (name, json.loads(arguments)) == (call.name, dict(call.arguments))


def _closes(style: ToolFormat, text: str) -> bool:
    """All that is missing is white space."""
    return text.rstrip().endswith(style.syntax.end.strip())


@EITHER
@given(st.text(max_size=30), st.lists(st.integers(0, 60), max_size=8))
def test_nonsense_is_read_the_same_however_it_is_cut(style, noise, places):
    start = style.write([Call("", "put", {"a": 1})])[len(style.opening) :]
    for text in (noise, start[: len(start) // 2] + noise, start + noise):
        whole = read(style.reader(), [text], True)
        assert read(style.reader(), cut(text, places), True) == whole
        assert read(style.reader(), list(text), True) == whole


@pytest.mark.parametrize(
    "arguments",
    ['{"a": 1', '{"a": NaN}', "{'a': 1}", "[1]", '"{}"', "null", '{"a": "\\ud800"}', '{"a": 01}'],
)
@EITHER
def test_arguments_that_are_no_strict_json_object_are_never_done(style, arguments):
    text = style.write([Call("", "put", {})])[len(style.opening) :].replace("{}", arguments)
    assert all(not done for _, _, done in read(style.reader(), [text], True))


def test_white_space_between_the_parts_is_free_but_not_inside_them():
    style = CANONICAL
    text = '\n\n{ "name" :"put" ,\n "arguments":{"a b":  " x "}\n}\n\n```\n'
    assert read(style.reader(), list(text), True) == [("put", '{"a b":  " x "}', True)]
    assert read(style.reader(), ['\n{"na me": "put", "arguments": {}}\n```'], True) == []


def test_a_name_comes_before_its_arguments_and_those_as_they_come():
    style = CANONICAL
    reader = style.reader()
    seen = []
    for character in style.write([Call("", "put", {"a": "ü"})])[len(style.opening) :]:
        seen += reader.feed(character)
    assert seen[0] == CallDelta(0, name="put")
    assert [d.arguments for d in seen[1:-1]] == list('{"a": "ü"}')
    assert seen[-1] == CallDelta(0, done=True)


def test_names_are_escaped_where_they_stand_in_json():
    call = Call("", 'a"b\\', {})
    text = CANONICAL.write([call])
    assert read(CANONICAL.reader(), list(text[len(CANONICAL.opening) :]), True) == [
        (call.name, "{}", True)
    ]
    grammar = CANONICAL.whole([Tool(call.name)], parallel=False)
    assert allows(grammar, text)


def test_a_grammar_without_tools_is_refused():
    with pytest.raises(ConfigError, match="no tool to call"):
        CANONICAL.body((), parallel=True)


def test_control_ids_of_a_format_are_the_member_s():
    hermes = next(f for f in FORMATS if f.name == "hermes")
    assert hermes.opening_ids == ()
    bound = hermes.bound({"<tool_call>": 5, "</tool_call>": 6, "<|im_end|>": 7})
    assert bound.opening_ids == (5,)
    assert bound.spelled == {5: b"<tool_call>", 6: b"</tool_call>"}
    assert hermes.bound({"</tool_call>": 6}).opening_ids == ()


def test_the_common_format_has_no_control_token_of_any_tokenizer(tokenizers):
    text = CANONICAL.write([Call("x", "name", {"a": 1}), Call("y", "name", {})])
    for name in ("llama-3", "mistral-v3", "phi-3", "qwen2.5", "yi", "minicpm3"):
        tokenizer, vocabulary = tokenizers(name)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert all(vocabulary.token_roles[i] is None for i in ids)


def test_the_only_call_of_a_format_for_one_is_not_joined_by_another():
    llama = next(f for f in FORMATS if f.name == "llama")
    calls = [Call("", "a", {}), Call("", "b", {})]
    assert llama.write(calls) == "\n".join(llama.write([c]) for c in calls)


@given(st.text(max_size=20))
def test_strict_objects_are_what_json_reads_as_objects(text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    assert is_object(text) == isinstance(value, dict)
