"""Statistics against published values and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from langchain_ensemble.choose import power, stats
from langchain_ensemble.errors import ConfigError


@pytest.mark.parametrize(
    ("k", "n", "level", "low", "high"),
    [  # published tables of the exact interval
        (0, 10, 0.95, 0.0, 0.308497),
        (10, 10, 0.95, 0.691503, 1.0),
        (5, 10, 0.95, 0.187086, 0.812914),
        (1, 20, 0.95, 0.001265, 0.248733),
        (8, 10, 0.95, 0.443905, 0.974789),
        (0, 1, 0.95, 0.0, 0.975),
    ],
)
def test_clopper_pearson_known(k: int, n: int, level: float, low: float, high: float) -> None:
    assert stats.clopper_pearson(k, n, level) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(3, 7), (40, 1000), (999, 1000), (2500, 5000)])
def test_clopper_pearson_is_where_the_tails_are_a_half(k: int, n: int) -> None:
    low, high = stats.clopper_pearson(k, n, 0.9)
    pmf = lambda p, i: math.exp(  # noqa: E731
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log(1 - p)
    )  # fmt: skip
    assert math.fsum(pmf(low, i) for i in range(k, n + 1)) == pytest.approx(0.05, rel=1e-6)
    assert math.fsum(pmf(high, i) for i in range(k + 1)) == pytest.approx(0.05, rel=1e-6)


def test_paired_bootstrap_is_the_exact_distribution_on_few_items() -> None:
    ours, theirs = [1, 1, 0, 1, 1], [0, 1, 1, 0, 0]
    difference = np.subtract(ours, theirs)
    every = [np.mean(pick) for pick in itertools.product(difference, repeat=5)]
    got = stats.paired_bootstrap(ours, theirs, samples=50_000, level=0.9, seed=3)
    assert got.mean == pytest.approx(0.4)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(every, [0.05, 0.95])), abs=1e-12)
    assert stats.paired_bootstrap(ours, theirs, seed=3) == stats.paired_bootstrap(
        ours, theirs, seed=3
    )


def test_paired_bootstrap_uses_the_pairing() -> None:
    noise = np.random.default_rng(0).normal(0, 100, 200)
    got = stats.paired_bootstrap(noise + 1, noise)
    assert got == pytest.approx((1, 1, 1))
    assert got.excludes_zero
    assert not stats.paired_bootstrap(noise, noise[::-1]).excludes_zero


def test_the_chunks_of_a_bootstrap_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    whole = stats.paired_bootstrap(values, np.zeros(50), samples=200)
    monkeypatch.setattr(stats, "_AT_ONCE", 150)
    assert stats.paired_bootstrap(values, np.zeros(50), samples=200) == whole


def test_bootstrap_ratio() -> None:
    b = np.random.default_rng(0).uniform(50, 150, 40)
    assert stats.bootstrap_ratio(0.96 * b, b, b) == pytest.approx((0.04, 0.04, 0.04))
    a = b * np.random.default_rng(1).uniform(0.8, 1.1, 40)
    got = stats.bootstrap_ratio(a, b, b)
    assert got.low < got.mean < got.high
    assert got.mean == pytest.approx(1 - a.sum() / b.sum())
    with pytest.raises(ConfigError, match="Leave empty paragraphs out"):
        stats.bootstrap_ratio([1.0, 0.0], [1.0, 0.0], [3, 0])


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 6, 60), generator.random(60) < 0.4
    pairs = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p in scores[positive]
        for q in scores[~positive]
    ]
    assert stats.auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert stats.auroc([1, 2, 3], [False, True, True]) == 1
    assert math.isnan(stats.auroc([1, 2], [True, True]))


def test_risk_at_a_share_is_the_mean_over_ways_to_cut_ties() -> None:
    confidence, wrong = [0.9, 0.5, 0.5, 0.5, 0.1], [False, True, False, True, True]
    curve = stats.risk_coverage(confidence, wrong)
    for given in (1, 2, 3, 4, 5):
        tied = list(itertools.permutations(wrong[1:4]))
        risks = [sum([wrong[0], *ties, wrong[4]][:given]) / given for ties in tied]
        assert stats.risk_at(curve, given / 5) == pytest.approx(sum(risks) / len(risks))
    assert stats.risk_at(stats.risk_coverage([0.5] * 4, [True] + [False] * 3), 0.5) == 0.25


def test_risk_coverage_keeps_equal_confidences_together() -> None:
    got = stats.risk_coverage([0.9, 0.5, 0.5, 0.1], [False, True, False, True])
    assert got == [(0.25, 0.0), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]


def test_reliability() -> None:
    got = stats.reliability([0.05, 0.15, 0.1, 1.0, 0.95], [False, True, False, True, False])
    assert got == [(0.05, 0.0, 1), (pytest.approx(0.125), 0.5, 2), (pytest.approx(0.975), 0.5, 2)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.paired_bootstrap([], []),
        lambda: stats.paired_bootstrap([1], [1, 2]),
        lambda: stats.paired_bootstrap([math.nan], [1]),
        lambda: stats.paired_bootstrap([1], [1], samples=0),
        lambda: stats.paired_bootstrap([1], [1], level=1),
        lambda: stats.clopper_pearson(3, 2),
        lambda: stats.clopper_pearson(0, 0),
        lambda: stats.auroc([math.inf, 1], [True, False]),
        lambda: stats.reliability([1.5], [True]),
    ],
)
def test_what_cannot_be_computed_is_said(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        call()


def test_sign_test_is_the_binomial_of_the_items_that_differ() -> None:
    ours, theirs = [True] * 9 + [False] * 11, [False] * 8 + [True] * 2 + [False] * 10
    wins, losses = 8, 1
    tail = sum(math.comb(9, k) for k in range(wins, 10)) / 2**9
    assert power.sign_test(ours, theirs) == pytest.approx(2 * tail)
    assert power.sign_test(theirs, ours) == power.sign_test(ours, theirs)
    assert losses == 1
    assert power.sign_test(ours, ours) == 1


def test_needed_items_have_the_power_that_they_promise() -> None:
    assert power.needed_items(0.1, 0.3) == 234  # by hand: ((1.96 sqrt .3 + .842 sqrt .29) / .1)^2
    assert power.needed_items(-0.1, 0.3) == 234
    generator = np.random.default_rng(0)
    outcome = generator.choice([1, -1, 0], p=[0.2, 0.1, 0.7], size=(4000, 234))
    won = outcome.sum(1) / np.sqrt((outcome != 0).sum(1)) > 1.96
    assert 0.77 < won.mean() < 0.84
    with pytest.raises(ConfigError):
        power.needed_items(0.0, 0.3)


def test_bootstrap_auroc() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(200) < 0.3
    scores = generator.normal(0, 1, 200) + positive
    got = stats.bootstrap_auroc(scores, positive)
    assert got is not None
    assert got.mean == stats.auroc(scores, positive)
    assert got.low < got.mean < got.high
    assert got.high - got.low == pytest.approx(0.14, abs=0.03)  # Hanley and McNeil: 4 x 0.036
    assert stats.bootstrap_auroc([1, 2], [True, True]) is None
    assert stats.bootstrap_auroc([1, 2, 3], [False, False, True]) == (1, 1, 1)
