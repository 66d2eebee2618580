"""The harness's words in ours: settings of a call, borders, conversations, repetitions."""

from __future__ import annotations

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.evaluate.harness import (
    call_settings,
    chat_text,
    moved_border,
    read_chat,
    rounds,
)


@pytest.mark.parametrize(
    ("given_", "call"),
    [
        ({}, {"stop": [], "max_tokens": 256, "temperature": 0.0}),
        ({"until": "\n"}, {"stop": ["\n"], "max_tokens": 256, "temperature": 0.0}),
        ({"until": ["a", "", "b"]}, {"stop": ["a", "b"], "max_tokens": 256, "temperature": 0.0}),
        ({"until": None}, {"stop": [], "max_tokens": 256, "temperature": 0.0}),
        ({"max_gen_toks": "7"}, {"stop": [], "max_tokens": 7, "temperature": 0.0}),
        ({"max_new_tokens": 7}, {"stop": [], "max_tokens": 7, "temperature": 0.0}),
        (
            {"max_gen_toks": 7, "max_tokens": 7},
            {"stop": [], "max_tokens": 7, "temperature": 0.0},
        ),
        ({"num_beams": 1}, {"stop": [], "max_tokens": 256, "temperature": 0.0}),
        ({"temperature": 0.5}, {"stop": [], "max_tokens": 256, "temperature": 0.5}),
        ({"do_sample": True}, {"stop": [], "max_tokens": 256, "temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": None, "seed": 1},
            {"stop": [], "max_tokens": 256, "temperature": 0.6, "top_p": 0.95, "seed": 1},
        ),
        (
            {"do_sample": False, "temperature": 0.0},
            {"stop": [], "max_tokens": 256, "temperature": 0.0},
        ),
    ],
)
def test_settings(given_, call):
    before = json.dumps(given_)
    assert call_settings(given_) == call
    assert json.dumps(given_) == before  # the harness hands the same dict to every request


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"max_length": 9}, "max_length"),
        ({"max_gen_toks": 7, "max_tokens": 8}, "contradict"),
        ({"until": 3}, "until"),
        ({"until": [3]}, "until"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0"),
    ],
)
def test_settings_that_cannot_be(given_, says):
    with pytest.raises(ConfigError, match=says):
        call_settings(given_)


def test_a_temperature_that_is_not_used_is_said():
    with pytest.warns(EnsembleWarning, match="temperature=0.7"):
        assert call_settings({"do_sample": False, "temperature": 0.7})["temperature"] == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_settings({"do_sample": False, "temperature": 0.0})


@settings(max_examples=30)
@given(st.text(alphabet=" \n\tab"), st.text(alphabet=" \n\tab"))
def test_the_border_moves_and_nothing_is_lost(context, continuation):
    left, right = moved_border(context, continuation)
    assert left + right == context + continuation
    assert left == left.rstrip()
    assert right.endswith(continuation)


@settings(max_examples=30)
@given(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()})))
def test_a_conversation_comes_back(messages):
    assert read_chat(chat_text(messages)) == messages


@pytest.mark.parametrize("text", ["", "Hi", "{}", '{"langchain_ensemble_chat": [', '["a"]'])
def test_other_texts_are_no_conversation(text):
    assert read_chat(text) is None


def test_repetitions_are_numbered():
    assert rounds(["a", "b", "a", "a", "b"]) == [0, 0, 1, 2, 1]
    assert rounds([]) == []
