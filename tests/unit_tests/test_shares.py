"""Weights in any form, brought into member order."""

from __future__ import annotations

import pytest

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.params import WEIGHT_RULES
from langchain_ensemble.shares import RULES, resolve_weights

NAMES = ("a", "b")
LEARNED = {"b": 0.75, "a": 0.25}


@pytest.mark.parametrize(
    ("weights", "calibrated", "found"),
    [
        (None, None, (0.5, 0.5)),
        (None, LEARNED, (0.25, 0.75)),
        ("uniform", LEARNED, (0.5, 0.5)),
        ("calibrated", LEARNED, (0.25, 0.75)),
        ("prompt", LEARNED, (0.5, 0.5)),
        ({"b": 1, "a": 0}, None, (0.0, 1.0)),
        ([0.4, 0.6], LEARNED, (0.4, 0.6)),
    ],
)
def test_forms(weights, calibrated, found):
    assert resolve_weights(weights, NAMES, calibrated) == found


def test_rules_are_those_of_a_request():
    assert RULES == WEIGHT_RULES


def test_what_is_refused():
    with pytest.raises(ConfigError, match="without a calibration"):
        resolve_weights("calibrated", NAMES)
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        resolve_weights("unifrm", NAMES)
    with pytest.raises(ConfigError, match="no entry for 'c'"):
        resolve_weights(None, (*NAMES, "c"), LEARNED)
