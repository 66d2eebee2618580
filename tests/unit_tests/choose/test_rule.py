"""UniTE's rule, and what fits into the memory."""

from __future__ import annotations

import pytest

from langchain_ensemble.choose.rule import Standing, group, length_ratio
from langchain_ensemble.choose.sizes import Size, joint_memory, read_vram
from langchain_ensemble.errors import ConfigError

TEN, BIGGER = Size(0, 10, 1), Size(0, 25, 1)
A = Standing("a", 0.80, 100, TEN)
B = Standing("b", 0.75, 120, TEN)
C = Standing("c", 0.70, 60, TEN)
LONG = Standing("long", 0.79, 250, TEN)
WEAK = Standing("weak", 0.50, 100, TEN)
BIG = Standing("big", 0.90, 100, BIGGER)


def test_the_best_and_the_next_best_that_are_compatible() -> None:
    found = group([WEAK, LONG, C, B, A], size=3)
    assert found.members == ("a", "b", "c")
    assert found.compatible
    assert "answers 2.5 times" in found.reasons["long"]
    assert found.reasons["weak"] == "3 members are enough"


@pytest.mark.parametrize(("accuracy", "taken"), [(0.70, True), (0.699, False)])
def test_ten_points_are_compatible_and_more_are_not(accuracy: float, taken: bool) -> None:
    found = group([A, Standing("x", accuracy, 100, TEN)], size=2)
    assert found.members == ("a", "x")  # measured all the same
    assert found.compatible is taken
    assert ("x" in found.reasons) is not taken


def test_the_rule_is_measured_even_where_it_takes_nobody() -> None:
    found = group([A, WEAK, LONG], size=2)
    assert found.members == ("a", "long")
    assert not found.compatible
    assert "30.0 points below a, more than 10" in found.reasons["weak"]
    assert "answers 2.5 times" in found.reasons["long"]


def test_memory_decides_who_can_start_and_who_fits() -> None:
    assert group([BIG, A, B], size=2).members == ("big", "a")
    found = group([BIG, A, B], size=2, budget=25)
    assert found.members == ("a", "b")
    assert found.reasons["big"].startswith("with it the members need")
    assert group([BIG, A, B, C], size=3, budget=25).members == ("a", "b")
    alone = group([BIG, A, B], size=2, budget=15)
    assert alone.members == ("big",)
    assert not alone.compatible


def test_unknown_memory_fits_nowhere() -> None:
    unknown = Standing("x", 0.8, 100, Size(None, 10, 1))
    assert group([A, unknown], size=2).members == ("a", "x")
    assert group([A, unknown], size=2, budget=10**9).members == ("a",)


def test_main_must_be_a_member() -> None:
    assert group([A, B, C], size=2, start="c").members == ("c", "a")


def test_ties_go_to_the_users_order() -> None:
    twin = Standing("twin", 0.80, 100, TEN)
    assert group([twin, A], size=2).members == ("twin", "a")
    assert group([A, twin], size=2).members == ("a", "twin")


def test_length_ratio() -> None:
    assert length_ratio(10, 5) == length_ratio(5, 10) == 2
    assert length_ratio(0, 0) == 1
    assert length_ratio(0, 3) == float("inf")


def test_shared_weights_count_once() -> None:
    one, other = Size(1000, 10, 1, shared="w"), Size(1000, 30, 1, shared="w")
    assert one.memory == 1110
    assert joint_memory([one, other]) == 1140
    assert joint_memory([one, other, Size(1000, 0, 1, shared="v")]) == 2240
    assert joint_memory([Size(1000, 0, 1), Size(1000, 0, 1)]) == 2200
    assert joint_memory([one, Size(None, 0, 1)]) is None
    views = [Standing(name, 0.8, 100, size) for name, size in (("a", one), ("b", other))]
    assert group(views, size=2, budget=1140).members == ("a", "b")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        ("24GB", 24 * 10**9),
        ("24 gib", 24 * 2**30),
        ("800MB", 800 * 10**6),
        (0.5, 5 * 10**8),
        (40, 40 * 10**9),
    ],
)
def test_vram(text: str | float | None, size: int | None) -> None:
    assert read_vram(text) == size


@pytest.mark.parametrize("text", ["", "24TB", "GB", "0", -2, "1e3", float("nan")])
def test_vram_that_is_none(text: str | float) -> None:
    with pytest.raises(ConfigError, match="vram is"):
        read_vram(text)
