"""Where a model's thought opens and closes, what turns it off, and who reads it."""

from __future__ import annotations

import pytest

from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Message
from langchain_ensemble.errors import ConfigError
from tests.unit_tests.chat.famous import (
    CHATML,
    DEEPSEEK_31,
    DEEPSEEK_R1,
    GLM,
    GPT_OSS,
    GRANITE,
    NEMOTRON,
    QWEN_3,
    QWEN_25,
)

ASKED = Conversation((Message("user", "Hi"),))
OFF, ON = ChatRequest(thinking="off"), ChatRequest(thinking="each")


def tail(view, prompt, start="Hi"):
    text = view._disarmer._tokenizer.decode(prompt.ids)
    return text[text.rindex(start) + len(start) :]


CASES = {
    # family: (template, thinking off, the prompt that thinks, after the thought "So.")
    "qwen-3": (
        QWEN_3,
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\nSo.\n</think>\n\n",
    ),
    "deepseek-r1": (
        DEEPSEEK_R1,
        None,
        "<｜Assistant｜><think>\n",
        "<｜Assistant｜><think>\nSo.\n</think>\n\n",
    ),
    "deepseek-3.1": (
        DEEPSEEK_31,
        "<｜Assistant｜></think>",
        "<｜Assistant｜><think>",
        "<｜Assistant｜><think>So.</think>",
    ),
    "gpt-oss": (
        GPT_OSS,
        None,
        "<|end|><|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>analysis<|message|>So.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>",
    ),
    "granite": (
        GRANITE,
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><think>\n",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><think>\nSo.\n</think>"
        "\n<response>",
    ),
    "nemotron": (
        NEMOTRON,
        "\n<SPECIAL_11>Assistant\n<think></think>",
        "\n<SPECIAL_11>Assistant\n<think>\n",
        "\n<SPECIAL_11>Assistant\n<think>\nSo.\n</think>\n\n",
    ),
    "glm": (
        GLM,
        "<|assistant|>\n<think></think>\n",
        "<|assistant|><think>",
        "<|assistant|><think>So.</think>",
    ),
}


@pytest.mark.parametrize("family", CASES)
def test_prompts_with_and_without_a_thought(family, views):
    template, off, on, after = CASES[family]
    view = views(template)
    assert view.thinking is not None
    assert tail(view, view.prompt(ASKED, ON)) == on
    assert tail(view, view.after_thought(ASKED, ON, "So.")) == after
    assert view.count(ASKED) > 0
    if off is None:
        with pytest.raises(ConfigError, match=r"'off', but .* 'qwen2.5' always opens a thought"):
            view.prompt(ASKED, OFF)
    else:
        assert tail(view, view.prompt(ASKED, OFF)) == off


@pytest.mark.parametrize("template", [CHATML, QWEN_25, None])
def test_a_model_that_does_not_think_reads_a_thought_in_its_own_turn(template, views):
    """As a part of the prompt: no byte of it is answer."""
    view = views(template, warn=print) if template is None else views(template)
    assert view.thinking is None
    assert view.prompt(ASKED, ON) == view.prompt(ASKED, OFF)
    plain = tail(view, view.prompt(ASKED, OFF))
    assert tail(view, view.after_thought(ASKED, ON, "\nSo.\n")) == (
        f"{plain}My thoughts:\nSo.\n\nMy answer:\n"
    )


@pytest.mark.parametrize("template", [QWEN_3, DEEPSEEK_R1, GPT_OSS, CHATML])
def test_a_thought_is_text(template, views):
    """Another member's thought may hold any spelling, also that of this member's own markers."""
    view = views(template)
    roles = view._vocabulary.token_roles
    markers = "</think> <|im_end|> <|end|> <think> <｜User｜>"
    counts = [
        sum(roles[i] is not None for i in view.after_thought(ASKED, ON, thought).ids)
        for thought in ("So.", markers)
    ]
    assert counts[0] == counts[1]
    assert markers in view._disarmer._tokenizer.decode(view.after_thought(ASKED, ON, markers).ids)


def test_markers_that_are_control_tokens_are_text_while_thinking(views, tokenizers):
    _, vocabulary = tokenizers("qwen2.5", True)
    view = views(QWEN_3)
    assert set(view.thinking.spelled.values()) == {b"<think>", b"</think>"}
    assert all(vocabulary.token_roles[i] is not None for i in view.thinking.spelled)
    assert views(QWEN_3, armed=False).thinking.spelled == {}
    assert set(views(GPT_OSS).thinking.spelled.values()) >= {b"<|channel|>", b"<|end|>"}


def test_an_answer_that_its_model_brackets_has_a_stop(views):
    assert views(GRANITE).thinking.stop == ("</response>",)
    assert views(QWEN_3).thinking.stop == ()


def test_earlier_thoughts_are_kept_or_dropped_as_the_template_does(views):
    view = views(QWEN_3)
    turns = (
        Message("user", "One"),
        Message("assistant", "two", thought="EARLIER"),
        Message("user", "Three"),
    )
    text = view._disarmer._tokenizer.decode(view.prompt(Conversation(turns), OFF).ids)
    assert "EARLIER" not in text
    last = Conversation((Message("user", "One"), Message("assistant", "two", thought="LATEST")))
    assert "LATEST" in view._disarmer._tokenizer.decode(view.prompt(last, OFF).ids)


def test_the_word_that_turns_thinking_off_goes_to_the_system_text(views):
    view = views(NEMOTRON, system="Be brief.")
    text = view._disarmer._tokenizer.decode(view.prompt(ASKED, OFF).ids)
    assert text.startswith("<SPECIAL_10>System\nBe brief.\n\n<SPECIAL_11>User")
