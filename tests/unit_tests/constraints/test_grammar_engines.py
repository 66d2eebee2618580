"""Which engine takes a grammar, what is said where none can, what is remembered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from langchain_ensemble.constraints import llguidance_engine, xgrammar_engine
from langchain_ensemble.constraints.compile import compile_all, compile_grammar
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
from langchain_ensemble.constraints.llguidance_engine import LLGuidanceCompiled
from langchain_ensemble.constraints.xgrammar_engine import XGrammarCompiled
from langchain_ensemble.errors import ConfigError
from tests.unit_tests.constraints.grammar_tables import (
    BYTES,
    CHARACTERS,
    ENGINES,
    accepts,
    compiled,
    schema,
)

GBNF = 'root ::= "a" | "b" root'
LARK = 'start: "a" | "b" start'


@pytest.mark.parametrize(
    ("grammar", "kind"),
    [
        (schema({"type": "string", "maxLength": 200}), LLGuidanceCompiled),
        (Joined((Literal("x"), Triggered("y", Regex("z")))), LLGuidanceCompiled),
        (Lark(LARK), LLGuidanceCompiled),
        (Ebnf(GBNF), XGrammarCompiled),
        (OneOf((Ebnf(GBNF), Literal("c"))), XGrammarCompiled),
    ],
)
def test_the_first_engine_that_can_takes_all_vocabularies(grammar, kind):
    grammars = compile_all(grammar, (BYTES, CHARACTERS, BYTES))
    assert [type(found) for found in grammars] == [kind] * 3
    assert grammars[0] is grammars[2]


def test_xgrammar_takes_what_it_can_where_llguidance_is_missing(monkeypatch):
    monkeypatch.setattr(llguidance_engine, "is_installed", lambda: False)
    grammar = compile_grammar(schema({"const": "only xgrammar"}), BYTES)
    assert isinstance(grammar, XGrammarCompiled)
    with pytest.raises(ConfigError, match=r"need llguidance, .* pip install .*\[structured\]"):
        compile_grammar(Lark(LARK), BYTES)


def test_with_no_engine_the_message_says_what_to_install(monkeypatch):
    for module in (llguidance_engine, xgrammar_engine):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    wanted = r'need llguidance or xgrammar, .*: pip install "langchain-ensemble\[structured\]"'
    with pytest.raises(ConfigError, match=wanted):
        compile_grammar(Literal("x"), BYTES)


@pytest.mark.parametrize(
    ("grammar", "engine", "message"),
    [
        (Joined((Ebnf(GBNF), Lark(LARK))), None, "no engine can take this grammar: llguidance: it"),
        (Ebnf(GBNF), "llguidance", "does not read GBNF"),
        (Lark(LARK), "xgrammar", "does not read Lark"),
        (Literal("x"), "outlines", "unknown grammar engine 'outlines'. .*'llguidance', 'xgrammar'"),
        (Ebnf('root ::= "a'), None, "xgrammar refuses the grammar: .*line 1"),
        (Ebnf("root ::= a"), None, "xgrammar refuses the grammar"),
        (Ebnf('root ::= "ße"'), None, "xgrammar misreads 'ße'"),
        (Joined((Ebnf('root ::= "\\u00fff"'), Literal("x"))), None, "misreads"),
        (Lark("start: nothing"), None, "llguidance refuses the grammar: .*nothing"),
        (Joined((Lark("begin: 'a'"), Literal("x"))), None, "llguidance refuses the grammar"),
        (OneOf(()), None, "a choice between nothing"),
        (Repeated(Literal("x"), "", 0), None, "at most 0 times"),
        (Triggered("", Literal("x")), None, "the trigger of a grammar is empty"),
        (Literal("\ud800"), None, "half a character"),
    ],
)
def test_a_grammar_that_cannot_be_is_refused_with_the_reason(grammar, engine, message):
    with pytest.raises(ConfigError, match=message):
        compile_grammar(grammar, BYTES, engine)


def test_a_vocabulary_that_cannot_begin_is_named():
    table = GrammarVocabulary((b"a", None), "only a")
    with pytest.raises(ConfigError, match="the vocabulary cannot spell one"):
        compile_grammar(Literal("b"), table)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Literal(""), [""], ["x"]),
        (Literal('ße\n\x01f日🦊\\"'), ['ße\n\x01f日🦊\\"'], ["ße"]),
        (Joined(()), [""], ["x"]),
        (Joined((Literal("a"), Literal(""), Literal("b"))), ["ab"], ["a"]),
        (OneOf((Literal("a"), Literal(""), schema({"const": 1}))), ["a", "", "1"], ["b"]),
        (Repeated(OneOf((Literal("a"), Literal("b"))), ", "), ["a", "a, b, a"], ["", "a,b", "a, "]),
        (Repeated(Literal("a"), "", 2), ["a", "aa"], ["", "aaa"]),
        (Joined((Regex("[a-z]*"), Literal("x"))), ["x", "abx", "xx"], ["ab", ""]),
        (
            Joined((schema({"$ref": "#/$defs/A", "$defs": {"A": {"const": 1}}}),) * 2),
            ["11"],
            ["1"],
        ),
    ],
)
def test_what_is_built_of_grammars(grammar: Grammar, good, bad, engine):
    found = compiled(grammar, engine)
    assert [text for text in good if not accepts(found, text)] == []
    assert [text for text in bad if accepts(found, text)] == []


def test_engines_are_imported_at_first_use():
    code = (
        "import sys, langchain_ensemble.constraints.compile\n"
        "assert not {'xgrammar', 'llguidance'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_remembered_is_bounded():
    from langchain_ensemble.constraints import compile as module

    for number in range(300):
        compile_grammar(Literal(f"text {number}"), BYTES)
    assert len(module._compiled._made) == module._compiled._size
    assert not module._compiled._making
    with pytest.raises(ConfigError):
        compile_grammar(Lark("start: nothing"), BYTES)
    with pytest.raises(ConfigError):  # a failure is not remembered as a lock that nobody frees
        compile_grammar(Lark("start: nothing"), BYTES)
