"""The quality benchmark's own code: weights, votes, areas, and that the page is its files'."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality_answers

    return quality_answers


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality_table

    return quality_table


@pytest.fixture
def specialists(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import specialists

    return specialists


def test_a_vote_of_two_goes_to_the_best_or_to_the_surer(answers):
    def said(text, sure):
        return {"text": text, "features": {"mean_logprob": sure}}

    members = ([said("a", -2.0), said("b", -1.0)], [said("c", -1.0), said("b", -2.0)])
    assert [a["text"] for a in answers.vote(members, 0, surest=False)] == ["a", "b"]
    assert [a["text"] for a in answers.vote(members, 0, surest=True)] == ["c", "b"]
    assert answers.majority(["x", "y", "y", "x", "z"]) == "x"


def test_a_perfect_signal_has_area_one_and_a_reversed_one_zero(answers):
    wrong = [n % 3 == 0 for n in range(60)]
    sure = [0.0 if flag else 1.0 for flag in wrong]
    assert answers.area(sure, wrong)[:2] == (1.0, 1.0)
    assert answers.area([1 - value for value in sure], wrong).mean == 0.0


def test_the_map_learns_which_way_a_feature_points(answers):
    def row(value):
        return {"features": dict.fromkeys(answers.FITTED, value)}

    dev = [row(n / 20) for n in range(40)]
    found = answers.fitted(dev, [float(n < 20) for n in range(40)], [row(0.1), row(1.9)])
    assert found[0] > 0 > found[1]


def test_the_better_member_is_that_under_the_same_fusion(table):
    same = {"members": ["a", "b"], "main": "a", "fusion": "gac", "gate": "always"}
    rows = [
        {**same, "weights": "uniform", "nats": [9.0, 9.0]},
        {**same, "weights": "all on a", "nats": [10.0, 10.0]},
        {**same, "weights": "all on b", "nats": [20.0, 20.0]},
    ]
    assert table.gain(rows, "uniform", [1, 1]).mean == pytest.approx(10.0)
    assert table.gain(rows, "learned", [1, 1]) is None
    worse = [{**rows[0], "nats": [11.0, 11.0]}, *rows[1:]]
    assert table.gain(worse, "uniform", [1, 1]).high < 0


@pytest.mark.skipif(not (FOLDER / "quality.md").exists(), reason="not made yet")
def test_the_page_tells_what_its_files_hold(table):
    def parts(page):  # what another benchmark measured is its own affair
        return [part for part in page.split("\n## ") if not part.startswith(("Ungated", "Rules"))]

    assert parts((FOLDER / "quality.md").read_text("utf-8")) == parts(table.page())


def test_nobody_saw_a_held_out_sum(specialists):
    known, asked = specialists.sums()
    seen = {item.question for item in known}
    assert asked
    assert not seen & {item.question for item in asked}
    numbers = {tuple(sorted(_numbers(item.question))) for item in known}
    assert not numbers & {tuple(sorted(_numbers(item.question))) for item in asked}


def test_of_every_fact_one_way_to_ask_is_held_out(specialists, shared):
    split = specialists.split(shared)
    seen = {item.question for item in split["facts"]}
    held = [i for i in (*split["test"], *split["dev"]) if i.half == "facts"]
    assert not seen & {item.question for item in held}
    assert not {(i.question) for i in split["test"]} & {(i.question) for i in split["dev"]}
    assert len(split["test"]) == 2 * sum(item.half == "sums" for item in split["test"])


def _numbers(text):
    words = text.replace("+", " ").replace("?", " ").split()
    return [int(word) for word in words if word.isdigit()]
