"""Tools, choices, schemas and grammars in every form, and what the engine is asked for them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypedDict
from weakref import WeakValueDictionary

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field, field_validator
from pydantic.v1 import BaseModel as BaseModelV1

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.adapter import engines
from langchain_ensemble.adapter.formats import (
    TOLD,
    is_recursive,
    read_grammar,
    read_response_format,
    untitled,
)
from langchain_ensemble.adapter.tools import read_choice
from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Message
from langchain_ensemble.constraints.grammar import Ebnf, JsonSchema, Lark, Regex
from langchain_ensemble.errors import ConfigError, EnsembleWarning, UnfinishedError
from tests.scripted_engine import ScriptedEnsemble, spelled_call


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEnsemble:
    made: list[ScriptedEnsemble] = []

    def build(params: Any, fusion: Any) -> ScriptedEnsemble:
        made.append(ScriptedEnsemble(params, fusion=fusion))
        return made[-1]

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())
    chat = make()
    assert chat.engine is made[0]  # type: ignore[comparison-overlap]
    made[0].held = chat  # type: ignore[attr-defined]
    return made[0]


def make(**settings: Any) -> ChatEnsemble:
    return ChatEnsemble(members={"a": "hub/a", "b": "hub/b"}, **settings)


def asked(engine: ScriptedEnsemble) -> tuple[Conversation, ChatRequest]:
    conversation, _, chat = engine.asked[-1]
    return conversation, chat


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="the question")
    punchline: str | None = None


class JokeDict(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "the question"]


class JokeV1(BaseModelV1):
    """A joke."""

    setup: str


class Tree(BaseModel):
    kids: list[Tree] = []


class Outer(BaseModel):
    """Holds another, twice."""

    one: Joke
    two: list[Joke]


@tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def shout(text: str) -> str:
    """Shout a text."""
    return text.upper()


OPENAI = {"type": "function", "function": {"name": "o", "parameters": {"type": "object"}}}
ANTHROPIC = {"name": "c", "description": "d", "input_schema": {"type": "object", "properties": {}}}
SCHEMA = {"title": "s", "type": "object", "properties": {"x": {"type": "integer"}}}


class TestTools:
    def test_every_form(self, engine: ScriptedEnsemble) -> None:
        forms = [OPENAI, ANTHROPIC, SCHEMA, Joke, JokeDict, JokeV1, multiply, shout]
        make().bind_tools(forms).invoke("hi")
        conversation, chat = asked(engine)
        names = [t.name for t in conversation.tools]
        assert names == ["o", "c", "s", "Joke", "JokeDict", "JokeV1", "multiply", "shout"]
        assert conversation.tools[-2].description == "Multiply."
        assert conversation.tools[-1].parameters["properties"] == {"text": {"type": "string"}}
        assert (chat.call, chat.callable, chat.parallel) == ("auto", (), True)

    def test_none_at_all(self, engine: ScriptedEnsemble) -> None:
        make().bind_tools([]).invoke("hi")
        assert asked(engine)[0].tools == ()

    def test_same_tool_twice_is_one_and_two_of_a_name_are_an_error(
        self, engine: ScriptedEnsemble
    ) -> None:
        make().bind_tools([multiply, multiply]).invoke("hi")
        assert len(asked(engine)[0].tools) == 1
        other = {"type": "function", "function": {"name": "multiply", "parameters": {}}}
        with pytest.raises(ConfigError, match="two tools are called 'multiply'"):
            make().bind_tools([multiply, other]).invoke("hi")

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (3, "3 cannot be read as a tool"),
            ({"type": "object"}, "cannot be read as a tool"),
            ({"type": "web_search"}, "run by another provider"),
        ],
    )
    def test_what_is_no_tool(self, wrong: Any, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            make().bind_tools([wrong])

    def test_class_that_holds_itself(self, engine: ScriptedEnsemble) -> None:
        @tool
        def plant(tree: Tree) -> str:
            """Plant a tree."""
            return str(tree)

        make().bind_tools([Tree, plant]).invoke("hi")
        first, second = asked(engine)[0].tools
        kids = {"items": {"$ref": "#/$defs/Tree"}, "type": "array", "default": []}
        assert first.parameters["properties"] == {"kids": kids}
        assert first.parameters["$defs"]["Tree"]["properties"] == {"kids": kids}
        assert second.parameters["properties"] == {"tree": {"$ref": "#/$defs/Tree"}}
        assert not is_recursive(Outer.model_json_schema())

    def test_strict_closes_objects(self, engine: ScriptedEnsemble) -> None:
        make().bind_tools([Joke], strict=True).invoke("hi")
        (joke,) = asked(engine)[0].tools
        assert joke.parameters["additionalProperties"] is False
        assert joke.parameters["required"] == ["setup", "punchline"]

    def test_parallel(self, engine: ScriptedEnsemble) -> None:
        bound = make().bind_tools([multiply, shout], parallel_tool_calls=False)
        assert len(bound.invoke("call").tool_calls) == 1
        assert asked(engine)[1].parallel is False
        several = make().bind_tools([multiply, shout]).invoke("call").tool_calls
        assert [call["name"] for call in several] == ["multiply", "shout"]


class TestChoice:
    names = ("f", "g")

    @pytest.mark.parametrize(
        ("choice", "read"),
        [
            (None, ("auto", ())),
            (False, ("auto", ())),
            ("auto", ("auto", ())),
            ({"type": "auto"}, ("auto", ())),
            ("none", ("none", ())),
            ({"type": "none"}, ("none", ())),
            ("any", ("required", ())),
            ("required", ("required", ())),
            (True, ("required", ())),
            ({"type": "any"}, ("required", ())),
            ("f", ("required", ("f",))),
            ({"type": "function", "function": {"name": "g"}}, ("required", ("g",))),
            ({"type": "function", "name": "g"}, ("required", ("g",))),
            ({"type": "tool", "name": "g"}, ("required", ("g",))),
            ({"name": "g"}, ("required", ("g",))),
        ],
    )
    def test_every_form(self, choice: Any, read: Any) -> None:
        assert read_choice(choice, self.names) == read

    def test_a_tool_may_be_called_like_a_choice(self) -> None:
        assert read_choice("any", ("any", "f")) == ("required", ("any",))
        assert read_choice("auto", ("auto",)) == ("required", ("auto",))

    @pytest.mark.parametrize("choice", ["h", {"name": "h"}, {}, 3, {"type": "function"}])
    def test_unknown(self, choice: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"unknown tool in tool_choice .*Known: 'any', 'auto'"
        ):
            read_choice(choice, self.names)

    def test_nearest_is_named_and_tools_are_needed(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean 'multiply'"):
            make().bind_tools([multiply], tool_choice="mutliply")
        with pytest.raises(ConfigError, match="tool_choice='any' without tools"):
            make().bind_tools([], tool_choice="any")


class TestFormats:
    def test_schema_is_enforced_and_told_after_the_system_turns(
        self, engine: ScriptedEnsemble
    ) -> None:
        chat = make().with_structured_output(Joke)
        assert chat.invoke([SystemMessage("be brief"), HumanMessage("hi")]) == Joke(
            setup="some text", punchline="some text"
        )
        conversation, request = asked(engine)
        told = TOLD + json.dumps(untitled(Joke.model_json_schema()), separators=(",", ":"))
        assert conversation.messages == (
            Message("system", "be brief"),
            Message("system", told),
            Message("user", "hi"),
        )
        assert '"title"' not in told
        assert request.grammar == JsonSchema(json.dumps(Joke.model_json_schema()))

    def test_json_mode_is_held_to_the_schema_but_not_told(self, engine: ScriptedEnsemble) -> None:
        assert make().with_structured_output(JokeV1, method="json_mode").invoke("hi") == JokeV1(
            setup="some text"
        )
        conversation, request = asked(engine)
        assert [turn.role for turn in conversation.messages] == ["user"]
        assert isinstance(request.grammar, JsonSchema)
        assert "setup" in request.grammar.schema
        assert make().with_structured_output(method="json_mode").invoke("hi") == {}
        assert asked(engine)[1].grammar == JsonSchema('{"type": "object"}')

    @pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
    @pytest.mark.parametrize("strict", [None, False, True])
    @pytest.mark.parametrize(
        "schema", [Joke, JokeV1, JokeDict, Joke.model_json_schema(), JokeV1.schema()]
    )
    @pytest.mark.usefixtures("engine")
    def test_every_schema_by_every_method(self, schema: Any, strict: Any, method: Any) -> None:
        chat = make().with_structured_output(schema, method=method, strict=strict)
        found: Any = chat.invoke("hi")
        *_, streamed = chat.stream("hi")
        assert streamed == found
        isclass = isinstance(schema, type) and schema is not JokeDict
        assert isinstance(found, schema if isclass else dict)
        assert (found.setup if isclass else found["setup"]) == "some text"

    def test_recursive_class(self, engine: ScriptedEnsemble) -> None:
        engine.chat_script = lambda *_: ['{"kids": [{"kids": []}]}']
        assert make().with_structured_output(Tree).invoke("hi") == Tree(kids=[Tree()])
        grammar = asked(engine)[1].grammar
        assert isinstance(grammar, JsonSchema)
        assert "$defs" in grammar.schema

    @pytest.mark.parametrize(
        ("form", "asked"),
        [
            (None, None),
            ({"type": "text"}, None),
            ({"type": "json_object"}, '{"type": "object"}'),
            ({"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}, SCHEMA),
            ({"type": "json_schema", "name": "s", "schema": SCHEMA}, SCHEMA),
            (SCHEMA, SCHEMA),
            (Joke, Joke.model_json_schema()),
        ],
    )
    def test_response_formats(self, form: Any, asked: Any) -> None:
        text = json.dumps(asked) if isinstance(asked, dict) else asked
        assert read_response_format(form).grammar == (None if text is None else JsonSchema(text))

    @pytest.mark.parametrize("form", [{"type": "json_schema"}, "json", 3, {"typ": "x"}])
    def test_wrong_response_formats(self, form: Any) -> None:
        with pytest.raises(ConfigError, match=r"response_format|cannot be read as a schema"):
            read_response_format(form)

    def test_titles_go_and_properties_called_title_stay(self) -> None:
        schema = {
            "title": "T",
            "properties": {"title": {"title": "Title", "type": "string"}},
            "anyOf": [{"title": "A"}],
            "$defs": {"title": {"title": "x", "properties": {"properties": {"title": "P"}}}},
        }
        assert untitled(schema) == {
            "properties": {"title": {"type": "string"}},
            "anyOf": [{}],
            "$defs": {"title": {"properties": {"properties": {}}}},
        }

    def test_grammars_of_a_call(self, engine: ScriptedEnsemble) -> None:
        make().invoke("hi", grammar={"regex": "[0-9]+"})
        assert asked(engine)[1].grammar == Regex("[0-9]+")
        assert read_grammar({"lark": "start: /a/"}) == Lark("start: /a/")
        assert read_grammar({"ebnf": 'root ::= "a"'}) == Ebnf('root ::= "a"')
        assert read_grammar({"json_schema": SCHEMA}) == JsonSchema(json.dumps(SCHEMA))
        assert read_grammar({"json_schema": '{"type": "null"}'}) == JsonSchema('{"type": "null"}')
        assert read_grammar(Regex("a")) == Regex("a")
        for wrong, said in (
            ({"regexp": "a"}, "Did you mean 'regex'"),
            ({"regex": "a", "lark": "b"}, "dict of one entry"),
            ("[0-9]", "dict of one entry"),
            ({"regex": 3}, "give its text"),
        ):
            with pytest.raises(ConfigError, match=said):
                read_grammar(wrong)

    @pytest.mark.usefixtures("engine")
    def test_contradictions(self) -> None:
        with pytest.raises(ConfigError, match="both say what the answer must be"):
            make().invoke("hi", grammar={"regex": "a"}, response_format={"type": "json_object"})
        bound = make().bind_tools([multiply], tool_choice="any")
        with pytest.raises(ConfigError, match="demands a tool call"):
            bound.invoke("hi", response_format={"type": "json_object"})
        with pytest.raises(ConfigError, match="unknown method of structured output 'json_schma'"):
            make().with_structured_output(Joke, method="json_schma")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="needs a schema"):
            make().with_structured_output()
        with pytest.raises(ConfigError, match="cannot be read as a schema"):
            make().with_structured_output(3)

    def test_response_format_beside_tools(self, engine: ScriptedEnsemble) -> None:
        """What an agent's ProviderStrategy asks: free to call, and the text is an object."""
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        make().bind_tools([multiply], response_format=form, strict=True).invoke("hi")
        conversation, request = asked(engine)
        assert request.call == "auto"
        assert request.grammar == JsonSchema(json.dumps(SCHEMA))
        assert len(conversation.tools) == 1
        assert conversation.messages[0].text.startswith("If you call no tool: " + TOLD)

    def test_answer_that_validation_refuses(self, engine: ScriptedEnsemble) -> None:
        class Even(BaseModel):
            n: int

            @field_validator("n")
            @classmethod
            def _even(cls, n: int) -> int:
                if n % 2:
                    raise ValueError("is odd")
                return n

        with pytest.raises(OutputParserException, match=r"schema of Even.*is odd"):
            make().with_structured_output(Even).invoke("hi")
        raw: Any = make().with_structured_output(Even, include_raw=True).invoke("hi")
        assert raw["parsed"] is None
        assert isinstance(raw["parsing_error"], OutputParserException)
        assert isinstance(raw["raw"], AIMessage)
        engine.chat_script = lambda *_: ["{}x"]
        with pytest.raises(OutputParserException, match="no JSON"):
            make().with_structured_output(Even).invoke("hi")
        engine.chat_script = lambda *_: ["just text"]
        with pytest.raises(OutputParserException, match="no call of 'Even'"):
            make().with_structured_output(Even, method="function_calling").invoke("hi")

    def test_cut_answers_carry_what_there_is(self, engine: ScriptedEnsemble) -> None:
        held = make(max_tokens=2).with_structured_output(Joke)
        with pytest.raises(UnfinishedError, match="cut after 2 tokens") as caught:
            held.invoke("hi")
        assert caught.value.partial == '{"setup": '
        assert isinstance(caught.value, OutputParserException)
        engine.chat_script = lambda *_: spelled_call(0, "Joke", {"setup": "x"}, done=False)
        called = make().with_structured_output(Joke, method="function_calling")
        with pytest.raises(UnfinishedError) as caught:
            called.invoke("hi")
        assert caught.value.partial.startswith('{"setup": "x"}')

    @pytest.mark.usefixtures("engine")
    def test_streamed_dicts_grow_and_objects_come_once(self) -> None:
        schema = Joke.model_json_schema()
        grown: list[Any] = list(make().with_structured_output(schema).stream("hi"))
        assert grown[0] == {}
        assert grown[-1] == {"setup": "some text", "punchline": "some text"}
        assert len(grown) > 3
        assert len(list(make().with_structured_output(Joke).stream("hi"))) == 1
        cut = make(max_tokens=3).with_structured_output(schema)
        with pytest.raises(UnfinishedError):
            list(cut.stream("hi"))


class TestArguments:
    def test_unknown_ones_are_warned_of(self, engine: ScriptedEnsemble) -> None:
        with pytest.warns(EnsembleWarning, match="'temprature'. Did you mean 'temperature'"):
            make().bind_tools([multiply], temprature=1).invoke("hi")
        assert engine.asked[-1][1].temperature == 0

    @pytest.mark.usefixtures("engine")
    def test_fixed_and_wrong_ones_are_errors(self) -> None:
        with pytest.raises(ConfigError, match="fusion is fixed for an ensemble"):
            make().invoke("hi", fusion="gac")
        with pytest.raises(ConfigError, match=r"unknown thinking 'of'. Did you mean 'off'"):
            make().invoke("hi", thinking="of")
        with pytest.raises(ConfigError, match="thinking_tokens is 0"):
            make().invoke("hi", thinking_tokens=0)
        with pytest.raises(ConfigError, match="n=2 in a stream"):
            list(make().stream("hi", n=2))

    def test_of_the_call_win_over_fields(self, engine: ScriptedEnsemble) -> None:
        chat = make(thinking="main", temperature=0.5, tools_by="fused")
        chat.invoke("hi", thinking="each", temperature=0.1, tools_by="main", thinking_tokens=7)
        request = engine.asked[-1]
        expected: Literal["each"] = "each"
        assert request[2].thinking == expected
        assert (request[2].tools_by, request[2].thinking_tokens) == ("main", 7)
        assert request[1].temperature == 0.1
