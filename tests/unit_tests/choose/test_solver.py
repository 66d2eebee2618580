"""The solver against brute force, and that its certificate means what it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from langchain_ensemble.choose.solver import TOLERANCE, minimise


def mixture(probs):
    """-mean log sum_i w_i q_i and its slopes, in float64; probs [N, M]."""

    def look(weights):
        w = np.asarray(weights)
        mixed = probs @ w
        gradient = -(probs / mixed[:, None]).mean(0)
        return float(-np.log(mixed).mean()), list(gradient - gradient @ w)

    return look


def product(logits, targets):
    """Log-linear mix over a small space; logits [N, M, S] log-probabilities."""

    def look(weights):
        w = np.asarray(weights)
        mixed = np.einsum("nms,m->ns", logits, w)
        z = np.log(np.exp(mixed).sum(-1))
        rows = np.arange(len(targets))
        p = np.exp(mixed - z[:, None])
        gradient = (np.einsum("nms,ns->nm", logits, p) - logits[rows, :, targets]).mean(0)
        return float((z - mixed[rows, targets]).mean()), list(gradient - gradient @ w)

    return look


def problems(members):
    rng = np.random.default_rng(members)
    logits = rng.normal(size=(40, members, 6)) * rng.uniform(0.5, 3, size=(1, members, 1))
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = rng.integers(0, 6, 40)
    good = rng.random(40) < 0.6
    targets[good] = logits[good, 0].argmax(-1)
    probs = np.exp(logits[np.arange(40), :, targets])
    return [mixture(probs), product(logits, targets)]


def grid(look, members, steps):
    points = itertools.product(range(steps + 1), repeat=members - 1)
    found = [
        look([*(p / steps for p in point), 1 - sum(point) / steps])[0]
        for point in points
        if sum(point) <= steps
    ]
    return min(found)


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("kind", [0, 1], ids=["mixture", "product"])
def test_nothing_on_a_grid_is_better(members, kind):
    look = problems(members)[kind]
    found = minimise(look, [1 / members] * members)
    best = grid(look, members, {2: 2000, 3: 100, 4: 30}[members])
    assert found.converged
    assert found.gap <= TOLERANCE
    assert found.value <= best + 1e-9
    assert found.value >= best - 0.01
    assert math.fsum(found.weights) == pytest.approx(1, abs=1e-12)
    assert min(found.weights) >= 0
    assert found.value == look(found.weights)[0]


@pytest.mark.parametrize("start", [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
def test_the_start_does_not_matter(start):
    look = problems(2)[0]
    assert minimise(look, start).value == pytest.approx(minimise(look, [0.5, 0.5]).value, abs=1e-6)


def test_a_member_that_only_hurts_gets_nothing():
    probs = np.random.default_rng(0).uniform(0.2, 0.9, size=(30, 3))
    probs[:, 2] = probs[:, :2].min(1) * 0.5
    found = minimise(mixture(probs), [1 / 3] * 3)
    assert found.converged
    assert found.weights[2] == 0


def test_the_gap_bounds_what_is_left_wherever_the_search_is_stopped():
    look = problems(3)[1]
    best = minimise(look, [1 / 3] * 3, tolerance=1e-12).value
    for moves in (0, 1, 2):
        found = minimise(look, [0.1, 0.1, 0.8], moves=moves)
        assert found.value - best <= found.gap + 1e-12
    assert not minimise(look, [0.1, 0.1, 0.8], moves=0).converged


def test_slopes_of_the_oracle_are_differences():
    for look in problems(3):
        w, h = [0.2, 0.3, 0.5], 1e-6
        for corner, slope in enumerate(look(w)[1]):
            ahead = [x + h * (float(i == corner) - x) for i, x in enumerate(w)]
            assert slope == pytest.approx((look(ahead)[0] - look(w)[0]) / h, abs=1e-4)
