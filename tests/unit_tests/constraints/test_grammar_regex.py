"""Regular expressions: what is read means what Python means by it, what is not read is refused."""

from __future__ import annotations

import json
import random
import re

import pytest

from langchain_ensemble.constraints.grammar import Regex
from langchain_ensemble.errors import ConfigError
from tests.unit_tests.constraints.grammar_tables import (
    BYTES,
    ENGINES,
    accepts,
    compiled,
    draw,
    schema,
)

PATTERNS = (
    *("", "a", "ab|c", "(a|b)*c", "a+?b{2}", "x{,2}y{1,}", "[a-c]+[^a-c]", "[]a]", "[a-]"),
    *(r"\d{4}-\d\d", r"\w+@\w{2}\.com|e", r"(?:ab)+|(?P<n>c)(?<m>d)", r"\s\S", r"\D\W", r"[\w-]+"),
    *(r"\x41\u00e9\t\n", "[à-ü]+", ".{3}", "日[本語]{1,2}", r"\{\}\[\]\(\)\*", "a{x}", "🦊?z"),
    *("ße", r"[\n0-9e]+", "[ße]", "\u00fff", r"[^\x00-\x1f]", r'"\\/', "}", "a|", "[a\\]b]"),
    *("(|a)b", "^ab$", "[^\\d]"),
)
LETTERS = 'abcxyzAé日本🦊ß019 -@.\n\t"\\/{}[]()*eà\u00fff'


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_expression_means_what_python_means_by_it(pattern, engine):
    grammar = compiled(Regex(pattern), engine)
    python = re.compile(re.sub(r"\(\?<(?=\w)", "(?P<", pattern))
    rng = random.Random(pattern)
    for _ in range(150):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(5)))
        if accepts(grammar, text):
            assert python.fullmatch(text), text
        elif python.fullmatch(text):  # letters beyond ASCII, where dialects disagree
            assert re.search(r"\\[WDw]|\\d\]", pattern), text
            assert not text.isascii(), text
    finished = 0
    for seed in range(60):
        matcher, said = grammar.matcher(), b""
        for token in draw([matcher], [BYTES], random.Random(seed), 60):
            said += token
            if matcher.may_end:
                finished += 1
                assert python.fullmatch(said.decode()), said
        if matcher.may_end:
            finished += 1
            assert python.fullmatch(said.decode()), said
    assert finished


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in ("", "^ab$")])
def test_a_pattern_of_a_schema_is_searched_in_the_value(pattern, engine):
    grammar = compiled(schema({"type": "string", "pattern": pattern}), engine)
    python = re.compile(re.sub(r"\(\?<(?=\w)", "(?P<", pattern))
    rng = random.Random(pattern)
    for _ in range(100):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(5)))
        if accepts(grammar, json.dumps(text, ensure_ascii=False)):
            assert python.search(text), text
        elif python.search(text):
            assert re.search(r"\\[WDw]|\\d\]", pattern), text
            assert not text.isascii(), text


@pytest.mark.parametrize("engine", ENGINES)
def test_anchors_hold_one_alternative(engine):
    grammar = compiled(schema({"type": "string", "pattern": r"^a|b\Z"}), engine)
    for text, fits in (("ax", True), ("xb", True), ("xa", False), ("bx", False)):
        assert accepts(grammar, f'"{text}"') is fits


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", r"'\(' is not closed"),
        ("a)", r"'\)' closes nothing"),
        ("[a", r"'\[' is not closed"),
        ("[b-a]", "goes backwards"),
        ("*a", "nothing to repeat"),
        ("a**", "follows a quantifier"),
        ("a{3,2}", "counts backwards"),
        ("a{1,99999}", "more than 10000"),
        ("a++", "possessive"),
        ("(?=a)b", "look-around"),
        ("(?<!a)b", "look-around"),
        ("(?i)a", "inline flags"),
        (r"(a)\1", r"'\\1' cannot be enforced"),
        (r"\bword\b", r"'\\b' cannot be enforced"),
        (r"\p{L}", r"'\\p' cannot be enforced"),
        ("a$b", "end of a top-level"),
        ("(a$)", "end of a top-level"),
        ("a^b", "start of a top-level"),
        (r"\ud800", "code of no character"),
        ("\ud800", "half a character"),
        ("a\\", "cannot be enforced"),
        ("[^\\s\\S]", "no text can match"),
    ],
)
def test_an_expression_that_cannot_be_enforced_is_refused(pattern, reason):
    with pytest.raises(ConfigError, match=reason):
        compiled(Regex(pattern), "llguidance")
