"""Every template shows every conversation completely, by the least change that does it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_ensemble.chat.arrange import Shape, arrange, tool_schemas, with_ids
from langchain_ensemble.chat.conversation import (
    Call,
    ChatRequest,
    Conversation,
    Message,
    Tool,
)
from langchain_ensemble.chat.fitting import Fitter
from langchain_ensemble.chat.recognise import shows_tools, tool_format
from langchain_ensemble.chat.template import PLAIN, Refused, Template
from langchain_ensemble.chat.tool_formats import CANONICAL
from langchain_ensemble.errors import ConfigError
from tests.unit_tests.chat.famous import (
    GEMMA,
    LLAMA_2,
    LLAMA_3,
    MISTRAL_1,
    MISTRAL_3,
    QWEN_3,
    TEMPLATES,
)

CALL = Call("call_1", "look_up", {"country": "Mali"})
TOOL = Tool("look_up", "Look a country up.")
FORMATS = {
    "chatml": ("canonical", False, True),
    "llama-2": ("canonical", False, True),
    "llama-3": ("llama", True, False),
    "mistral-1": ("canonical", False, True),
    "mistral-3": ("mistral", True, True),
    "mistral-11": ("mistral-args", True, True),
    "gemma": ("canonical", False, True),
    "phi-3": ("canonical", False, True),
    "phi-4": ("phi-4-repeated", True, True),
    "zephyr": ("canonical", False, True),
    "qwen-2.5": ("hermes", True, True),
    "qwen-3": ("hermes", True, True),
    "deepseek-r1": ("deepseek", False, True),
    "deepseek-3.1": ("deepseek-3.1", False, True),
    "gpt-oss": ("canonical", False, True),
    "granite": ("granite", True, True),
    "command-r": ("canonical", False, True),
    "nemotron": ("nemotron", True, True),
    "functionary": ("functionary", True, True),
    "glm": ("canonical", True, True),
}
"""Family -> (format of calls, whether it shows tools itself, whether it holds several calls)."""


class Bare:
    """What a template reads of a tokenizer."""

    chat_template: Any = None
    special_tokens_map: ClassVar = {"bos_token": "<s>", "eos_token": "</s>"}
    bos_token_id = None


@pytest.fixture
def read():
    def get(text: str | None) -> Template:
        return Template("m", Bare(), text)

    return get


def said(role: str, text: str = "", **more: Any) -> Message:
    return Message(role, text, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_format_is_recognised_by_what_a_template_writes(family, read):
    template = read(TEMPLATES[family])
    style = tool_format(template, {})
    several = style.syntax.between is not None
    assert (style.name, shows_tools(template), several) == FORMATS[family]


ROLES = st.lists(
    st.sampled_from(["system", "user", "assistant", "call", "calls", "text call"]), max_size=7
)


def conversation(kinds: list[str], named: bool) -> list[Message]:
    """Turns whose every content is a word of its own; calls with all their results."""
    found: list[Message] = []
    for at, kind in enumerate(kinds):
        if "call" not in kind:
            name = f"nm{at}x" if named and kind == "user" else None
            found.append(said(kind, f"tx{at}x", name=name))
            continue
        calls = tuple(
            Call(f"id-{at}-{n}", f"fn{at}n{n}x", {f"ky{at}n{n}x": f"vl{at}n{n}x"})
            for n in range(1 + (kind == "calls"))
        )
        found.append(said("assistant", f"tx{at}x" if kind == "text call" else "", calls=calls))
        found += [said("tool", f"rs{at}n{n}x", call_id=c.id) for n, c in enumerate(calls)]
    return found


def words(messages: list[Message]) -> list[str]:
    found = []
    for m in messages:
        found += [m.text] if m.text else []
        found += [m.name] if m.name and m.role == "user" else []
        for c in m.calls:
            found += [c.name, *c.arguments, *map(str, c.arguments.values())]
    return found


@pytest.mark.parametrize("family", [*TEMPLATES, "plain"])
def test_every_turn_of_any_conversation_is_shown_once(family, read, acceptance_scale):
    template = read(TEMPLATES.get(family))
    fitter, native = Fitter(family, template), tool_format(template, {})

    @settings(max_examples=30 * acceptance_scale)
    @given(
        ROLES,
        st.booleans(),
        st.booleans(),
        st.sampled_from(["user", "call", "assistant", "system"]),
    )
    def check(kinds: list[str], named: bool, common: bool, last: str) -> None:
        messages = with_ids(conversation([*kinds, last], named))
        style = CANONICAL if common else native
        shown = style is native and style is not CANONICAL and shows_tools(template)
        tools = (TOOL,) if shown else ()
        shape = fitter.shape(messages, style, tools)
        text = template.render(arrange(messages, shape, style), tool_schemas(tools))
        # where a result names its tool, the tool's name is there twice
        names = {c.name for m in messages for c in m.calls}
        counts = {word: text.count(word) for word in words(messages)}
        assert {w: n for w, n in counts.items() if n != 1 and w not in names} == {}
        assert all(counts[name] >= 1 for name in names)
        assert not shown or TOOL.name in text

    check()


def test_a_conversation_that_a_template_shows_as_it_is_stays_as_it_is(read):
    turns = [said("system", "S"), said("user", "U"), said("assistant", "A"), said("user", "V")]
    for family, text in TEMPLATES.items():
        template = read(text)
        shape = Fitter(family, template).shape(turns, CANONICAL)
        assert (shape == Shape()) == (family not in ("mistral-1", "gemma")), family


@pytest.mark.parametrize(
    "text",
    [MISTRAL_1, GEMMA, "{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}"],
)
def test_without_a_system_role_its_text_stands_in_front_of_the_user_s(text, read):
    """Gemma and Mistral raise; the third leaves it out silently."""
    turns = [said("system", "One."), said("system", "Two."), said("user", "Hi")]
    shape = Fitter("m", read(text)).shape(turns, CANONICAL)
    assert shape.system == "user"
    (turn,) = arrange(turns, shape, CANONICAL)
    assert turn == {"role": "user", "content": "One.\n\nTwo.\n\nHi"}


def test_system_text_of_a_template_that_keeps_the_last_one_is_joined(read):
    template = read(
        "{% set ns = namespace(s='') %}{% for m in messages if m.role == 'system' %}"
        "{% set ns.s = m.content %}{% endfor %}{{ ns.s }}"
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    turns = [said("system", "One."), said("user", "Hi"), said("system", "Two.")]
    shape = Fitter("m", template).shape(turns, CANONICAL)
    assert arrange(turns, shape, CANONICAL)[0]["content"] == "One.\n\nTwo."


def test_turns_of_one_speaker_are_one_where_they_must_alternate(read):
    turns = [said("assistant", "Hello"), said("user", "a"), said("user", "b")]
    shape = Fitter("m", read(LLAMA_2)).shape(turns, CANONICAL)
    assert arrange(turns, shape, CANONICAL) == [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "a\n\nb"},
    ]


def test_names_stand_before_a_user_s_text_where_the_template_drops_them(read):
    turns = [said("user", "Hi", name="Ada"), said("assistant", "Yes?", name="bot")]
    shape = Fitter("m", read(QWEN_3)).shape(turns, CANONICAL)
    assert [t["content"] for t in arrange(turns, shape, CANONICAL)] == ["Ada: Hi", "Yes?"]
    keeps = read("{% for m in messages %}{{ m.name }} says {{ m.content }};{% endfor %}")
    assert Fitter("m", keeps).shape(turns, CANONICAL) == Shape()


def test_ids_have_nine_characters_where_a_template_wants_them(read):
    template = read(MISTRAL_3)
    style = tool_format(template, {})
    turns = [
        said("user", "Hi"),
        said("assistant", calls=(CALL, Call("call_2", "look_up", {}))),
        said("tool", "two", call_id="call_2"),
        said("tool", "one", call_id="call_1"),
    ]
    shape = Fitter("m", template).shape(with_ids(turns), style, (TOOL,))
    made = arrange(with_ids(turns), shape, style)
    ids = [c["id"] for c in made[1]["tool_calls"]]
    assert [len(i) for i in ids] == [9, 9]
    assert [t["tool_call_id"] for t in made[2:]] == ids[::-1]
    nine = [said("user", "Hi"), said("assistant", calls=(Call("abc123def", "f", {"a": 1}),))]
    nine.append(said("tool", "one", call_id="abc123def"))
    assert not Fitter("m", template).shape(with_ids(nine), style, (TOOL,)).short_ids


def test_a_template_for_single_calls_sees_one_call_a_turn(read):
    template = read(LLAMA_3)
    style = tool_format(template, {})
    turns = with_ids(
        [
            said("user", "Hi"),
            said("assistant", "So:", calls=(CALL, Call("call_2", "look_up", {"country": "Togo"}))),
            said("tool", "one", call_id="call_1"),
            said("tool", "two", call_id="call_2"),
        ]
    )
    shape = Fitter("m", template).shape(turns, style, (TOOL,))
    assert shape.calls == "single"
    made = arrange(turns, shape, style)
    assert [t["role"] for t in made] == ["user", *["assistant"] * 2, "tool", "assistant", "tool"]
    assert [t["content"] for t in made] == ["Hi", "So:", "", "one", "", "two"]


def test_calls_and_results_in_the_common_form():
    turns = with_ids(
        [
            said("assistant", "Let me see.", calls=(CALL, Call("", "add", {"a": [1, "ü"]}))),
            said("tool", 'a "result"\n```', call_id="call_1"),
            said("tool", "no", failed=True),
        ]
    )
    said_, results = arrange(turns, Shape(calls="text"), CANONICAL)
    assert said_["content"] == (
        'Let me see.\n\n```tool_call\n{"name": "look_up", "arguments": {"country": "Mali"}}\n```\n'
        '```tool_call\n{"name": "add", "arguments": {"a": [1, "ü"]}}\n```'
    )
    assert results["role"] == "user"
    assert results["content"] == (
        '```tool_result\n{"name": "look_up", "content": "a \\"result\\"\\n```"}\n```\n'
        '```tool_result\n{"name": "add", "error": "no"}\n```'
    )


def test_results_without_an_id_answer_the_calls_in_their_order():
    turns = with_ids(
        [
            said("assistant", calls=(Call("", "a", {}), Call("", "b", {}))),
            said("tool", "one"),
            said("tool", "two"),
            said("tool", "nobody asked"),
        ]
    )
    ids = [c.id for c in turns[0].calls]
    assert len(set(ids)) == 2
    assert [(t.call_id, t.name) for t in turns[1:3]] == [(ids[0], "a"), (ids[1], "b")]
    assert turns[3].call_id not in (None, *ids)


def test_what_no_arrangement_shows_is_an_error_that_says_what_is_lost(read):
    template = read("{{ messages[-1].content }}")
    turns = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    with pytest.raises(ConfigError, match=r"'m' cannot show .* leaves out the text of turn 1"):
        Fitter("m", template).shape(turns, CANONICAL)
    picky = read("{{ raise_exception('never') }}")
    with pytest.raises(ConfigError, match="it says 'never'"):
        Fitter("m", picky).shape(turns, CANONICAL)


def test_content_is_a_list_of_parts_for_a_template_that_wants_it(read):
    template = read(
        "{% for m in messages %}{% for part in m.content if part.type == 'text' %}"
        "{{ m.role }}: {{ part.text }}\n{% endfor %}{% endfor %}"
    )
    turns = [said("user", "a"), said("assistant", "b")]
    shape = Fitter("m", template).shape(turns, CANONICAL)
    assert shape == Shape(parts=True)
    assert template.render(arrange(turns, shape, CANONICAL)) == "user: a\nassistant: b\n"


def test_calls_with_ids_that_the_format_leaves_out_are_recognised(read):
    template = read(
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}"
        "{{ '[TOOL_CALLS]' + c.function.name + '[CALL_ID]' + c.id + '[ARGS]' }}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    assert tool_format(template, {}).name == "mistral-args"


def test_a_template_that_repeats_a_turn_is_taken_as_it_is(read):
    template = read("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[-1].content }}")
    assert Fitter("m", template).shape([said("user", "a")], CANONICAL) == Shape()


def test_a_template_that_is_no_jinja_is_refused(read):
    with pytest.raises(ConfigError, match="no Jinja"):
        read("{% for m in messages %}")


def test_the_template_for_tools_is_used_for_tools(read):
    class Two(Bare):
        chat_template: ClassVar = {
            "default": "A {{ messages[0].content }}",
            "tool_use": "{{ tools }}",
        }

    template = Template("m", Two(), Two.chat_template["default"])
    assert template.render([{"role": "user", "content": "x"}]) == "A x"
    assert "look_up" in template.render([{"role": "user", "content": "x"}], tool_schemas([TOOL]))


def test_templates_use_all_that_transformers_gives_them(read):
    template = read(
        "{% generation %}{{ {'a': '<b>'} | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ eos_token }}"
    )
    assert template.render([{"role": "user", "content": "x"}]) == '{"a": "<b>"}4</s>'
    with pytest.raises(Refused, match="stop"):
        read("{{ raise_exception('stop') }}").render([])


def test_the_plain_template_has_a_line_for_each_speaker(read):
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert read(None).render(turns) == "System:\nS\n\nUser:\nU\n\nAssistant:\n"
    assert read(PLAIN).render(turns) == read(None).render(turns)


def test_requests_do_not_share_state(read):
    """The same structure gives the same shape, whatever was asked before."""
    template = read(MISTRAL_3)
    turns = [said("system", "S"), said("user", "U")]
    first = Fitter("m", template).shape(turns, CANONICAL)
    fitter = Fitter("m", template)
    fitter.shape([said("system", "S"), said("assistant", "U"), said("assistant", "V")], CANONICAL)
    assert fitter.shape(turns, CANONICAL) == first
    assert ChatRequest().thinking == "off"
    assert Conversation(tuple(turns)).tools == ()
