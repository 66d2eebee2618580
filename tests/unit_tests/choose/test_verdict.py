"""The verdict as a table: numbers in, one sentence out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from langchain_ensemble.choose.compare import System, contest
from langchain_ensemble.choose.stats import Interval
from langchain_ensemble.choose.verdict import Contest, Evidence, decide


def against(mean: float, low: float, high: float, p: float = 0.001, s: float = 0.2) -> Contest:
    return Contest(Interval(mean, low, high), p, max(s, abs(mean)), high)


WINS = against(0.08, 0.03, 0.13)
LOSES = against(-0.08, -0.13, -0.03)
OPEN = against(0.03, -0.02, 0.08, p=0.3)
FLAT = against(0.0, -0.01, 0.01, p=1.0)
BASE = Evidence(
    items=400,
    level=0.95,
    best="a",
    best_accuracy=0.6,
    ensemble="unite(a+b)",
    ensemble_accuracy=0.68,
    against_best=WINS,
    samples=2,
    sampled_of="a",
    sampled_accuracy=0.61,
    sampled_against_best=FLAT,
    vote_accuracy=0.62,
)
SAMPLES_WIN = {"sampled_accuracy": 0.7, "sampled_against_best": WINS}

CASES = {
    "the ensemble wins": ({}, "ensemble", "Use unite(a+b): 68.0 % against 60.0 % of a alone"),
    "a vote is as good": ({"vote_accuracy": 0.7}, "ensemble", "is as good, 70.0 %"),
    "the best alone wins": (
        {"against_best": LOSES, "ensemble_accuracy": 0.52},
        *("alone", "Use a alone (60.0 %): unite(a+b) is worse, -8.0 points"),
    ),
    "no gain worth it": (
        {"against_best": FLAT, "ensemble_accuracy": 0.6},
        *("alone", "gains less than 2 points"),
    ),
    "too small": (
        {"against_best": OPEN, "ensemble_accuracy": 0.63},
        *("undecided", "The dev set of 400 is too small to tell"),
    ),
    "too small, says the sign test": (
        {"against_best": against(0.08, 0.03, 0.13, p=0.06)},
        *("undecided", "interval +3.0 to +13.0), but sign test p 0.060; at least"),
    ),
    "too small for two points": (
        {"against_best": against(-0.01, -0.06, 0.05, p=0.8), "ensemble_accuracy": 0.59},
        *("undecided", "too small to tell a gain of 2 points"),
    ),
    "samples win": (
        {**SAMPLES_WIN, "against_best": OPEN, "ensemble_accuracy": 0.63},
        *("self-consistency", "Use a alone and let its answers vote: 2 samples reach 70.0 %"),
    ),
    "samples beat a winning ensemble": (
        SAMPLES_WIN,
        *("self-consistency", "unite(a+b), at the same cost, reaches 68.0 %"),
    ),
    "an ensemble beats winning samples": (
        {**SAMPLES_WIN, "sampled_accuracy": 0.65},
        *("ensemble", "2 samples of a reach 65.0 %"),
    ),
    "one in the same memory wins": (
        {"best": "c", "same_memory": "c", "against_best": LOSES, "ensemble_accuracy": 0.52},
        *("alone", "Use c alone (60.0 %, one candidate in the memory of the ensemble)"),
    ),
    "nothing left to gain": (
        {"best_accuracy": 1.0, "ensemble_accuracy": 1.0, "against_best": FLAT},
        *("alone", "it answers every question right"),
    ),
    "no ensemble": (
        {"ensemble": None, "against_best": None, "why_not": "b does not fit"},
        *("alone", "no ensemble was measured: b does not fit"),
    ),
    "no ensemble, samples win": (
        {**SAMPLES_WIN, "ensemble": None, "against_best": None},
        *("self-consistency", "against 60.0 % of a once"),
    ),
}


@pytest.mark.parametrize(("changes", "kind", "said"), CASES.values(), ids=CASES)
def test_verdict(changes: dict[str, object], kind: str, said: str) -> None:
    verdict = decide(replace(BASE, **changes))  # type: ignore[arg-type]
    assert verdict.kind == kind
    assert said in verdict.sentence
    assert verdict.sentence.endswith(".")
    assert verdict.sentence.count(". ") == 0  # one sentence
    assert (verdict.needed is not None) == (kind == "undecided")


def test_needed_items_are_more_than_there_are_and_are_said() -> None:
    verdict = decide(replace(BASE, against_best=OPEN))
    assert verdict.needed is not None
    assert verdict.needed > 400
    assert f"at least {verdict.needed} items" in verdict.sentence


def test_both_tests_must_say_so() -> None:
    assert WINS.decided(0.95) == 1
    assert LOSES.decided(0.95) == -1
    assert replace(WINS, p=0.06).decided(0.95) == 0
    assert replace(WINS, p=0.03).decided(0.975) == 0  # two ensembles were tried
    assert OPEN.decided(0.95) == 0


def system(right: str) -> System:
    return System(right, "candidate", ("x",), ("",) * len(right), tuple(c == "1" for c in right))


def test_a_bootstrap_of_few_wins_is_not_trusted() -> None:
    few = contest(system("1" * 4 + "0" * 16), system("0" * 20), 0.95)
    assert few.difference.excludes_zero  # the percentile bootstrap is too sure
    assert few.p == pytest.approx(0.125)
    assert few.decided(0.95) == 0


def test_no_difference_on_few_questions_is_no_proof_of_none() -> None:
    same = contest(system("10" * 10), system("10" * 10), 0.95)
    assert same.difference == (0, 0, 0)
    assert same.bound == pytest.approx(1 - 0.025 ** (1 / 20))
    evidence = replace(BASE, items=20, best_accuracy=0.5, ensemble_accuracy=0.5, against_best=same)
    assert decide(evidence).kind == "undecided"
    same = contest(system("10" * 200), system("10" * 200), 0.95)
    assert decide(replace(evidence, items=400, against_best=same)).kind == "alone"
