"""Features of answers, the raw number, the calibrated map, spans."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_ensemble.confidence import (
    FEATURES,
    FLOOR,
    ConfidenceMap,
    confidence_features,
    confidence_of,
    map_for,
    raw_confidence,
    sentences,
    span_confidence,
    texts_of,
)
from langchain_ensemble.decoding.records import TokenRecord
from langchain_ensemble.errors import ConfigError


def token(text: str | bytes = b"a", logprob: float | None = -0.1, **changes: Any) -> TokenRecord:
    data = text.encode() if isinstance(text, str) else text
    members = changes.pop("members", {"a": logprob, "b": None})
    return TokenRecord(1, data, logprob, members, **{"fused": True, **changes})


LOGPROBS = st.floats(-50, 0)
TOKENS = st.lists(
    st.builds(
        token,
        logprob=LOGPROBS,
        members=st.fixed_dictionaries({"a": LOGPROBS, "b": st.none() | LOGPROBS}),
        fused=st.booleans(),
        disagreement=st.none() | st.floats(0, 1),
        overruled=st.none() | st.booleans(),
    ),
    max_size=30,
)


@given(TOKENS)
def test_features_are_numbers_and_confidence_is_in_the_unit_interval(
    tokens: list[TokenRecord],
) -> None:
    features = confidence_features(tokens)
    assert tuple(features) == FEATURES
    assert all(math.isfinite(value) for value in features.values())
    assert features["min_logprob"] <= features["mean_logprob"] + 1e-9
    assert features["mean_least_logprob"] <= features["mean_main_logprob"] + 1e-9
    assert 0 <= features["mean_disagreement"] <= features["max_disagreement"] + 1e-9 <= 1 + 1e-6
    assert 0 <= raw_confidence(features) <= 1


def test_features_say_what_they_are_called() -> None:
    tokens = [
        token(logprob=-0.2, members={"a": -0.1, "b": -0.4}, disagreement=0.2, overruled=False),
        token(logprob=-0.6, members={"a": -2.0, "b": None}, disagreement=0.6, overruled=True),
        token(logprob=-0.1, members={"a": -0.1}, fused=False),
    ]
    assert confidence_features(tokens) == pytest.approx(
        {
            "mean_logprob": -0.3,
            "min_logprob": -0.6,
            "mean_main_logprob": -2.2 / 3,
            "mean_least_logprob": (-0.4 + FLOOR - 0.1) / 3,
            "mean_disagreement": 0.8 / 3,
            "max_disagreement": 0.6,
            "overruled": 1 / 3,
            "share_fused": 2 / 3,
        }
    )
    sure = confidence_of(tokens)
    assert sure.confidence == pytest.approx(math.exp(-0.3))
    assert not sure.calibrated
    assert json.loads(json.dumps(sure.to_dict())) == sure.to_dict()


def test_the_surer_answer_has_the_higher_number() -> None:
    sure, unsure = token(logprob=-0.01), token(logprob=-3.0)
    numbers = [
        raw_confidence(confidence_features(tokens)) for tokens in ([sure], [sure, unsure], [unsure])
    ]
    assert numbers[0] > 0.98
    assert numbers == sorted(numbers, reverse=True)
    assert raw_confidence(confidence_features([])) == 0.0


def test_tokens_that_nobody_watched_are_refused() -> None:
    with pytest.raises(ConfigError, match="logprobs=True"):
        confidence_features([token(), token(logprob=None)])


def test_a_map_is_a_logistic_function_of_its_features() -> None:
    made = ConfidenceMap(("mean_logprob", "max_disagreement"), (2.0, -1.5), 0.5)
    tokens = [token(logprob=-0.4, disagreement=0.3)]
    expected = 1 / (1 + math.exp(-(0.5 - 0.8 - 0.45)))
    sure = confidence_of(tokens, made)
    assert sure.confidence == pytest.approx(expected)
    assert sure.calibrated
    assert ConfidenceMap.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    extreme = ConfidenceMap(("mean_logprob",), (1e6,), 0.0)
    assert extreme(dict.fromkeys(FEATURES, -30.0)) == pytest.approx(0.0)
    assert extreme(dict.fromkeys(FEATURES, 30.0)) == 1.0


@pytest.mark.parametrize(
    ("read", "told"),
    [
        ({"features": ["mean_logprop"], "coefficients": [1], "intercept": 0}, "'mean_logprob'"),
        ({"features": ["min_logprob"], "coefficients": [1, 2], "intercept": 0}, "2 coefficients"),
        ({"features": ["min_logprob"], "coefficients": [math.nan], "intercept": 0}, "finite"),
        ({"features": ["min_logprob"], "coefficients": [1.0]}, "intercept"),
    ],
)
def test_a_map_that_is_none_is_refused(read: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ConfidenceMap.from_dict(read)


def test_a_map_holds_for_the_weights_it_was_learned_with() -> None:
    read = {"features": ["min_logprob"], "coefficients": [1.0], "intercept": 0.0}

    class Known:
        confidence = read

    assert map_for(Known(), None) == map_for(Known(), "calibrated") == ConfidenceMap.from_dict(read)
    for others in ("uniform", (0.5, 0.5), {"a": 1.0}):
        assert map_for(Known(), others) is None
    assert map_for(None, None) is None


# spans


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two!  Three", ["One.", "Two!", "Three"]),
        ("It is 3.5 m. Yes?!", ["It is 3.5 m.", "Yes?!"]),
        ("a line\n\nanother\n", ["a line", "another"]),
        ("日本。東京", ["日本。", "東京"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert [text[a:b] for a, b in sentences(text)] == found


@given(st.text(max_size=40))
def test_sentences_hold_every_character_but_space_once(text: str) -> None:
    spans = sentences(text)
    inside = {place for a, b in spans for place in range(a, b)}
    assert sum(b - a for a, b in spans) == len(inside)
    assert all(char.isspace() for place, char in enumerate(text) if place not in inside)


def test_spans_are_made_of_the_tokens_that_stand_in_them() -> None:
    tokens = [
        token(" Sure", -0.0), token(".", -0.0), token(" No", -2.0), token(" idea", -1.0),
        token("é".encode()[:1], -1.0), token("é".encode()[1:], -1.0), token(b"", -9.0),
    ]  # fmt: skip
    text = "Sure. No ideaé"  # without the space that a tokenizer invents
    first, second = span_confidence(text, tokens, sentences(text))
    assert text[first.start : first.end] == "Sure."
    assert first.confidence.confidence == 1.0
    assert text[second.start : second.end] == "No ideaé"
    assert second.confidence.mean_logprob == pytest.approx(-(2 + 1 + 1 + 1) / 4)  # not END's
    assert span_confidence("something else", tokens, [(0, 4)]) == []
    assert span_confidence(text, tokens, [(3, 3)]) == []


@given(st.text(max_size=20), st.randoms(use_true_random=False))
def test_texts_of_tokens_are_the_answer_however_it_is_cut(text: str, dice: Any) -> None:
    data = text.encode("utf-8", "replace")
    cuts = sorted({0, len(data), *(dice.randint(0, len(data)) for _ in range(5))})
    tokens = [token(data[a:b]) for a, b in pairwise(cuts)]
    assert "".join(texts_of(tokens)) == data.decode()
