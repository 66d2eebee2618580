"""The confidence map: what a solver elsewhere finds, and honest numbers out of fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from langchain_ensemble.choose.stats import auroc
from langchain_ensemble.choose.sureness import FEWEST, RIDGE, USED, learn_map, out_of_fold
from langchain_ensemble.confidence import FEATURES
from langchain_ensemble.errors import ConfigError


def answers(count: int, seed: int = 0) -> tuple[list[dict[str, float]], list[bool]]:
    """Answers that are right where they are likely and the members agree."""
    draw = np.random.default_rng(seed)
    likely, apart = -draw.exponential(0.5, count), draw.random(count)
    chance = 1 / (1 + np.exp(-(1.5 + 2 * likely - 1.5 * apart)))
    rows = [
        {**dict.fromkeys(FEATURES, 0.0), "mean_logprob": a, "min_logprob": 3 * a, "overruled": 0.0,
         "mean_disagreement": b, "max_disagreement": min(1.0, b + 0.1)}
        for a, b in zip(likely, apart, strict=True)
    ]  # fmt: skip
    return rows, list(draw.random(count) < chance)


def test_the_map_is_the_minimum_of_its_objective() -> None:
    rows, right = answers(150)
    found = learn_map(rows, right)
    raw = torch.tensor([[row[name] for name in USED] for row in rows], dtype=torch.float64)
    scale = raw.std(0, correction=0)
    scale[scale < 1e-9] = torch.inf
    scaled = (raw - raw.mean(0)) / scale
    truth = torch.tensor(right, dtype=torch.float64)
    a = torch.zeros(len(USED), dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([a, b], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def loss() -> torch.Tensor:
        solver.zero_grad()
        score = scaled @ a + b
        bce = torch.nn.functional.binary_cross_entropy_with_logits(score, truth, reduction="sum")
        total: torch.Tensor = bce + RIDGE / 2 * a.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    wanted = torch.sigmoid(scaled @ a + b).tolist()
    assert [found(row) for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert found.coefficients[USED.index("overruled")] == 0  # it never changed


def test_out_of_fold_ranks_and_is_no_look_at_the_answer() -> None:
    rows, right = answers(400)
    honest = out_of_fold(rows, right)
    assert honest is not None
    assert auroc([-value for value in honest], [not one for one in right]) > 0.7
    assert float(np.mean(honest)) == pytest.approx(np.mean(right), abs=0.05)
    taught = [n for n in range(400) if n % 5 != 2]
    other = learn_map([rows[n] for n in taught], [right[n] for n in taught])
    assert honest[2] == other(rows[2])
    noise = out_of_fold(rows, list(np.random.default_rng(9).random(400) < 0.5))
    assert noise is not None
    coin = [bool(n % 3) for n in range(400)]
    assert auroc(list(out_of_fold(rows, coin) or []), coin) < 0.6


def test_too_few_teach_nothing() -> None:
    rows, _ = answers(60)
    right = [n < FEWEST for n in range(60)]
    assert out_of_fold(rows, right) is None
    learn_map(rows, right)
    with pytest.raises(ConfigError, match="9 right and 50 wrong"):
        learn_map(rows[1:], right[1:])
