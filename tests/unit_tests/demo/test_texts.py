"""What the demo members learn from: no text of LangChain's standard tests, and rows as promised."""

from __future__ import annotations

import ast
import importlib
import json
import random
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"
ONE_WORD = {"hello", "hi"}  # prompts of the suite that are everybody's words: never a whole turn


@pytest.fixture(scope="module")
def mix():
    if not TOOLS.is_dir():
        pytest.skip("the tools are not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("demo_mix")


def _texts(made) -> list[str]:
    """Everything of a document or a conversation that a member reads."""
    if isinstance(made, str):
        return [made]
    called = [c["function"] for m in made.messages for c in m.get("tool_calls", ())]
    spelled = [json.dumps(c, ensure_ascii=False) for c in [*called, *made.tools]]
    return [m["content"] for m in made.messages] + spelled


@pytest.fixture(scope="module", params=["facts", "stories"])
def sample(request, mix, shared) -> list:
    """Two hundred draws of every kind, and every document that may be drawn."""
    library = mix.Library.of(request.param, shared)
    rng, makers = random.Random(5), mix.makers(library)
    drawn = [makers[kind](rng) for kind in mix.SHARES[request.param] for _ in range(200)]
    return [*drawn, *library.told, *library.tales]


def _sources() -> list[ast.Module]:
    package = pytest.importorskip("langchain_tests")
    folder = Path(package.__file__).parent
    return [ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))]


def _docstrings(tree: ast.Module) -> set[int]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def _prompts(tree: ast.Module) -> set[str]:
    """Every string of three words or more, or of characters beyond ASCII, that is no docstring."""
    told = _docstrings(tree)
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
    }
    return {s for s in strings if len(s.split()) > 2 or (len(s) > 1 and not s.isascii())}


def _names(tree: ast.Module) -> set[str]:
    """Names of tools: functions under a tool decorator, and what is given as a name."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    made = {f.name for f in functions if any("tool" in ast.unparse(d) for d in f.decorator_list)}
    given = [kw for node in ast.walk(tree) if isinstance(node, ast.Call) for kw in node.keywords]
    return made | {
        kw.value.value
        for kw in given
        if kw.arg == "name" and isinstance(kw.value, ast.Constant) and "_" in str(kw.value.value)
    }


def test_no_text_has_a_prompt_or_a_tool_of_the_standard_tests(sample):
    trees = _sources()
    prompts = {prompt.lower() for tree in trees for prompt in _prompts(tree)}
    names = {name for tree in trees for name in _names(tree)}
    assert {"get_weather", "magic_function", "unicode_customer"} <= names  # the search finds them
    assert any("san francisco" in prompt for prompt in prompts)
    assert "how are you" in prompts
    read = [text for made in sample for text in _texts(made)]
    whole = "\n".join(read).lower()
    assert [text for text in (*prompts, *names) if text in whole] == []
    assert [text for text in read if text.strip(" .!?").lower() in ONE_WORD] == []


def test_the_words_of_the_standard_tests_would_be_found(mix):
    chat = importlib.import_module("demo_turns")
    asked = chat.Chat([chat.user("What is the weather in San Francisco, CA?")])
    prompts = {prompt for tree in _sources() for prompt in _prompts(tree)}
    assert any(prompt in _texts(asked)[0] for prompt in prompts)


def test_schemas_are_as_langchain_writes_them(mix):
    from langchain_core.tools import tool
    from langchain_core.utils.function_calling import convert_to_openai_tool

    @tool
    def country_fact(country: str, field: str) -> str:
        """Look up a fact about a country."""
        return ""

    turns = importlib.import_module("demo_turns")
    kinds = {"country": "string", "field": "string"}
    own = turns.schema("country_fact", "Look up a fact about a country.", kinds)
    assert json.dumps(own) == json.dumps(convert_to_openai_tool(country_fact))


def test_calls_use_the_values_of_the_request(mix, shared):
    tools = importlib.import_module("demo_tools")
    rng = random.Random(3)
    for _ in range(300):
        use = tools.random_tool(rng)
        spelled = [
            str(v).lower() if isinstance(v, bool) else str(v) for v in use.arguments.values()
        ]
        assert all(value in use.request for value in spelled), use


def test_a_conversation_counts_from_the_answer_to_its_end(mix):
    from transformers import AutoTokenizer

    from langchain_ensemble import demo

    turns = importlib.import_module("demo_turns")
    chat = turns.Chat([turns.user("Good morning!"), turns.says("Yes."), turns.user("Why?")])
    for folder in demo.members().values():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids, weights = mix.chat_row(tokenizer, chat)
        counted = tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w])
        assert counted == "Yes." + tokenizer.eos_token
