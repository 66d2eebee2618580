"""Laws of matchers, over real vocabularies: agreement, soundness, rollback, ends, triggers."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from langchain_ensemble.constraints.compile import compile_all
from langchain_ensemble.constraints.grammar import (
    Ebnf,
    Grammar,
    GrammarVocabulary,
    Joined,
    Lark,
    Literal,
    OneOf,
    Regex,
    Repeated,
    Triggered,
)
from tests.unit_tests.constraints.grammar_tables import (
    BYTES,
    CHARACTERS,
    ENGINES,
    accepts,
    allowed_ids,
    compiled,
    draw,
    next_bytes,
    schema,
    table_of,
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "größe": {"type": "number", "minimum": 0, "maximum": 2.5},
        "kind": {"enum": ["Fuchs", "日本", "🦊", None]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["name", "kind"],
}
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": -5, "maximum": 300},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}
CALL = Joined(
    (
        Literal('<call>{"name": "'),
        OneOf((Literal("add"), Literal("multiply"))),
        Literal('", "arguments": '),
        schema(TREE),
        Literal("}</call>"),
    )
)
GRAMMARS: dict[str, Grammar] = {
    "person": schema(PERSON),
    "tree": schema(TREE),
    "any object": schema({"type": "object"}),
    "regex": Regex(r"(\d{3}-)?[a-zß日]+( [^a]x)*\.?"),
    "call": CALL,
    "calls": Repeated(CALL, "\n", 3),
    "trigger": Triggered("<call>", Joined((Literal(" "), schema(PERSON), Literal("</call>")))),
}


@pytest.fixture(scope="module")
def tables(shared: Path) -> list[GrammarVocabulary]:
    return [
        table_of(shared / "tokenizers" / "gpt2"),  # byte-level BPE
        table_of(shared / "tokenizers" / "llama-2"),  # SentencePiece with byte fallback
        table_of(shared / "models" / "stories260K"),  # the same, 512 ids
        BYTES,
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GRAMMARS)
def test_matchers_that_read_the_same_bytes_agree_on_the_next(name, engine, tables):
    grammars = compile_all(GRAMMARS[name], tables, engine)
    inside_a_character = 0
    for seed in range(4):
        rng = random.Random(f"{name} {seed}")
        matchers = [grammar.matcher() for grammar in grammars]
        text = b""
        for token in draw(matchers, tables, rng, 25):
            text += token
            first, *others = [next_bytes(m, t) for m, t in zip(matchers, tables, strict=True)]
            assert all(other == first for other in others), text
            assert len({m.may_end for m in matchers}) == 1, text
            inside_a_character += text[-1] >= 0xC0
        assert text
    if name in ("person", "any object", "trigger"):
        assert inside_a_character, "the walk never stood inside a character"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GRAMMARS)
def test_an_id_is_allowed_exactly_if_its_bytes_can_be_read(name, engine, tables):
    rng = random.Random(name)
    for table in (tables[2], CHARACTERS):
        matcher = compiled(GRAMMARS[name], engine, table).matcher()
        for _ in draw([matcher], [table], rng, 12):
            row = matcher.allowed()
            assert row.shape == (len(table.token_bytes),)
            assert row.dtype == torch.bool
            place = matcher.mark()
            for token_id, token in enumerate(table.token_bytes):
                readable = bool(token) and matcher.advance(token)  # type: ignore[arg-type]
                matcher.rollback(place)
                assert bool(row[token_id]) == readable, token
            assert torch.equal(matcher.allowed(), row)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_big_vocabulary_is_masked_exactly_too(engine, tables):
    rng = random.Random(5)
    for table in tables[:2]:
        matcher = compiled(GRAMMARS["person"], engine, table).matcher()
        for _ in draw([matcher], [table], rng, 20):
            row = matcher.allowed()
            place = matcher.mark()
            some = rng.sample(range(len(row)), 300) + rng.sample(allowed_ids(matcher), 1)
            for token_id in some:
                token = table.token_bytes[token_id]
                assert bool(row[token_id]) == (bool(token) and matcher.advance(token)), token
                matcher.rollback(place)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GRAMMARS)
def test_rollback_is_a_fresh_replay(name, engine, tables):
    rng = random.Random(f"{name} rollback")
    table = tables[2]
    grammar = compiled(GRAMMARS[name], engine, table)
    matcher = grammar.matcher()
    history: list[bytes] = []
    marks = [matcher.mark()]
    for _ in range(30):
        if history and rng.random() < 0.3:
            kept = rng.randrange(len(history))
            matcher.rollback(marks[kept])
            del history[kept:], marks[kept + 1 :]
        for token in draw([matcher], [table], rng, rng.randrange(4)):
            history.append(token)
            marks.append(matcher.mark())
        replay = grammar.matcher()
        assert replay.advance(b"".join(history))
        assert torch.equal(replay.allowed(), matcher.allowed())
        assert replay.may_end == matcher.may_end


@pytest.mark.parametrize("engine", ENGINES)
def test_refused_bytes_change_nothing(engine):
    matcher = compiled(GRAMMARS["person"], engine).matcher()
    assert matcher.advance(b'{"name": "\xc3')
    row = matcher.allowed()
    for wrong in (b"x", b'\xa9"x', b"\xa9\xff", b"\xa9\x00"):
        assert not matcher.advance(wrong)
        assert torch.equal(matcher.allowed(), row)
    assert matcher.advance(b"")
    assert matcher.advance(b"\xa9")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pattern", ["a*b?", "(ab|a)(b|c)*", "x{2,4}y", "é?日*"])
def test_an_answer_may_end_exactly_where_it_is_whole(pattern, engine):
    grammar = compiled(Regex(pattern), engine)
    rng = random.Random(pattern)
    for _ in range(30):
        matcher, text = grammar.matcher(), b""
        assert matcher.may_end == bool(re.fullmatch(pattern, ""))
        for token in draw([matcher], [BYTES], rng, 8):
            text += token
            whole = re.fullmatch(pattern, text.decode(errors="surrogateescape"))
            assert matcher.may_end == (whole is not None), text


@pytest.mark.parametrize("engine", ENGINES)
def test_after_the_last_byte_nothing_is_allowed_but_the_end(engine):
    matcher = compiled(Literal("ja"), engine).matcher()
    assert matcher.advance(b"ja")
    assert matcher.may_end
    assert not matcher.allowed().any()
    assert not matcher.advance(b"x")
    place = matcher.mark()
    matcher.rollback(place)
    assert matcher.may_end


@pytest.mark.parametrize("engine", ENGINES)
def test_text_is_free_until_the_trigger_and_bound_after_it(engine, tables):
    grammar = Triggered("<call>", Joined((schema({"type": "integer"}), Literal("</call>"))))
    table = tables[0]
    free = compiled(grammar, engine, table).matcher()
    can_be_said = torch.tensor([bool(token) for token in table.token_bytes])
    readable = torch.tensor([_is_text(token) for token in table.token_bytes])
    assert free.may_end
    assert torch.equal(free.allowed() & readable, can_be_said & readable)
    for text in (
        "",
        "Hello <cal",
        "<<call",
        "a < b and 日本\n\n",
        "<call>12</call>",
        "x<call>-1</call>",
    ):
        assert accepts(compiled(grammar, engine), text), text
    for text in (
        "<call>",
        "<call>x",
        "<call>12",
        "<call>12</call>x",
        "<call>1</call><call>2</call>",
    ):
        assert not accepts(compiled(grammar, engine), text), text
    for cut in range(1, 7):  # a trigger that comes in two tokens
        matcher = compiled(grammar, engine).matcher()
        assert matcher.advance(b"so: " + b"<call>"[:cut])
        assert matcher.advance(b"<call>"[cut:])
        assert next_bytes(matcher, BYTES) == set(b"-0123456789")
        assert not matcher.may_end


@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_that_finishes_the_trigger_must_go_on_legally(engine):
    tokens = (b"<", b"call>", b"call>1", b"call>x", b"call", b"x", b"1", b"call>1</", b"</call>")
    table = GrammarVocabulary(tokens, "around a trigger")
    grammar = Triggered("<call>", Joined((schema({"type": "integer"}), Literal("</call>"))))
    matcher = compiled(grammar, engine, table).matcher()
    assert len(allowed_ids(matcher)) == len(tokens)
    assert matcher.advance(b"<")
    said = {tokens[token_id] for token_id in allowed_ids(matcher)}
    assert said == {b"<", b"call>", b"call>1", b"call", b"x", b"1", b"call>1</", b"</call>"}


def _is_text(token: bytes | None) -> bool:
    try:
        return bool((token or b"").decode())
    except UnicodeDecodeError:
        return False


def test_gbnf_and_lark_can_be_parts():
    inner = 'root ::= item ("; " item)*\nitem ::= [a-c]+\n'
    grammar = compiled(Joined((Literal("list: "), Ebnf(inner), Literal("."))), "xgrammar")
    assert accepts(grammar, "list: ab; c.")
    assert not accepts(grammar, "list: ab; .")
    lark = 'start: item ("; " item)*\nitem: /[a-c]+/\n'
    whole = compiled(Lark(lark), "llguidance")
    assert accepts(whole, "ab; c")
    part = compiled(Joined((Literal("list: "), Lark(lark), Literal("."))), "llguidance")
    assert accepts(part, "list: ab; c.")
    assert not accepts(part, "list: ab; .")
    for engine, leaf in (("xgrammar", Ebnf(inner)), ("llguidance", Lark(lark))):
        several = compiled(Repeated(OneOf((leaf, Literal("0"))), " | ", 2), engine)
        assert accepts(several, "ab | 0")
        assert not accepts(several, "ab | 0 | c")
        waiting = compiled(Triggered("go:", leaf), engine)
        assert accepts(waiting, "let us go:a; b")
        assert not accepts(waiting, "let us go:x")


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_compiled_grammar(engine, tables):
    table = tables[2]
    grammar = compiled(GRAMMARS["calls"], engine, table)

    def walk(seed: int) -> tuple[bytes, list[int]]:
        matcher = grammar.matcher()
        said = b"".join(draw([matcher], [table], random.Random(seed), 40))
        return said, allowed_ids(matcher)

    alone = [walk(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(walk, range(16))) == alone


def test_a_vocabulary_is_compiled_once_whoever_asks(tables):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compile_all(Literal("once"), tables[2:] * 2), range(8)))
    assert len({id(grammar) for row in found for grammar in row}) == 2
