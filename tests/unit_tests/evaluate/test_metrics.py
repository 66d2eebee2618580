"""Metrics: every way in which a scorer was seen to count a wrong answer as right, or miss one."""

from __future__ import annotations

from decimal import Decimal

import pytest

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.evaluate.metrics import (
    METRICS,
    contains,
    exact_match,
    last_number,
    letter,
    normalise,
    number,
)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("prediction", ["", " ", "\n", ".", "\x00"])
def test_an_empty_prediction_is_wrong(metric, prediction):
    assert metric(prediction, ["A 12", "B 3"]) is False


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("gold", ["", [], ["7", " "]])
def test_a_question_without_an_answer_is_refused(metric, gold):
    with pytest.raises(ConfigError, match="empty"):
        metric("7", gold)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The Planet of the Apes.", "planet of apes"),
        ("  An\tapple,\n a day ", "apple day"),
        ("Ann Theatre", "ann theatre"),
        ("U.S.A.", "usa"),
        ("The The", "the the"),
        ("?", "?"),
        ("Ünïcode", "ünïcode"),
    ],
)
def test_normalise(text, form):
    assert normalise(text) == form


def test_exact_match():
    assert exact_match(" the Prince! ", "Prince")
    assert exact_match("Vancouver", ["Vancouver , Washington", "Vancouver"])
    assert exact_match("The The", "the the")
    assert not exact_match("Prince of Persia", "Prince")
    assert not exact_match("Prince", "Prince of Persia")
    assert not exact_match("rince", "Prince")  # a prediction inside gold is not gold
    assert not exact_match("the", "a")
    assert not exact_match("!", "?")


def test_contains_finds_whole_words():
    assert contains("It was Prince, I think", "prince")
    assert contains("17 and 7", "7")
    assert not contains("17", "7")
    assert not contains("Prin", "prince")
    assert not contains("anything", "?")


@pytest.mark.parametrize(
    "said",
    ["B", " B", "B.", "(B)", "B: it melts", "**B**", "'B'", '"B".', "B\nC", "B, because", " B  "],
)
def test_a_letter(said):
    assert letter(said, "B")
    assert not letter(said, "A")
    assert letter(said, ["A", " B "])


@pytest.mark.parametrize("said", ["Answer", "A dog", "A's", "A2", "a", "because A", "1", "ÄA"])
def test_not_a_letter(said):
    assert not letter(said, "A")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567", "1234567"),  # not 567
        ("It is 1,234,567.", "1234567"),
        ("10,20", "20"),
        ("1,2345", "2345"),
        ("1234,567", "567"),
        ("$1,234.50.", "1234.5"),
        ("3-5", "5"),
        ("3 - 5", "5"),
        ("(3)-5", "5"),
        ("= -5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        (r"\boxed{-5}", "-5"),
        ("+5", "5"),
        ("−5", "-5"),
        ("4.", "4"),
        ("4.\n", "4"),
        (".5", "0.5"),
        ("...5", "5"),
        ("no.5", "5"),
        ("50%", "50"),
        ("3/4", "4"),
        (r"\boxed{1{,}234}", "1234"),
        (r"1,\!000", "1000"),
        (r"10\,000", "10000"),
        (r"\$18", "18"),
        ("first 3 then 4 apples", "4"),
        ("00012", "12"),
    ],
)
def test_the_last_number(text, value):
    assert number(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "no number", "-", "$", ",", "...", "٣"])
def test_no_number(text):
    assert number(text) is None


def test_last_number_compares_values():
    gold = "He has 2 + 3 = 5.\nTherefore, the answer is 2,125"
    assert last_number("The answer is \\boxed{2125}", gold)
    assert last_number("$2,125.00", gold)
    assert not last_number("125", gold)
    assert not last_number("-2125", gold)
    assert not last_number("2125 is 3 more than I thought", gold)
    assert last_number("4", ["5", "4"])


def test_last_number_needs_one_in_gold():
    with pytest.raises(ConfigError, match="no number"):
        last_number("4", "four")
