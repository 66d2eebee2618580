"""Means of log-distributions against a short float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch

from langchain_ensemble.fusion.combine import power_mean

POWERS = [0.0, 1.0, -1.0, 0.5, 2.0, -3.0, math.inf, -math.inf]


def _case(seed: int, members: int = 3, rows: int = 4, size: int = 257) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    logps = (4 * torch.randn(members, rows, size, generator=draw)).log_softmax(-1)
    weights = torch.rand(rows, members, generator=draw) + 0.1
    return logps, weights / weights.sum(-1, keepdim=True)


def _oracle(logps: torch.Tensor, weights: torch.Tensor, power: float) -> torch.Tensor:
    p, w = logps.double().exp(), weights.double().T[..., None]
    if power == 0:
        mean = (p**w).prod(0)
    elif math.isinf(power):
        mean = p.amax(0) if power > 0 else p.amin(0)
    else:
        mean = (w * p**power).sum(0) ** (1 / power)
    return mean / mean.sum(-1, keepdim=True)


@pytest.mark.parametrize("power", POWERS)
def test_a_mean_is_what_its_equation_says(power: float) -> None:
    logps, weights = _case(0)
    got = power_mean(logps, weights, power).exp().double()
    torch.testing.assert_close(got, _oracle(logps, weights, power), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("power", POWERS)
def test_laws_of_a_mean(power: float) -> None:
    logps, weights = _case(1)
    mixed = power_mean(logps, weights, power)
    order = [2, 0, 1]
    torch.testing.assert_close(power_mean(logps[order], weights[:, order], power), mixed)
    same = logps[:1].expand(3, -1, -1)
    torch.testing.assert_close(power_mean(same, weights, power), logps[0], atol=2e-5, rtol=1e-5)
    for row in range(len(weights)):
        alone = power_mean(logps[:, row], weights[row], power)
        torch.testing.assert_close(alone, mixed[row])


@pytest.mark.parametrize("power", POWERS)
def test_who_has_no_weight_has_no_say_whatever_it_holds(power: float) -> None:
    logps, weights = _case(2)
    weights = torch.tensor([0.25, 0.75, 0.0]).expand(len(weights), -1)
    logps[2] = torch.nan
    got = power_mean(logps, weights, power)
    torch.testing.assert_close(got, power_mean(logps[:2], weights[:, :2], power))
    one = torch.tensor([0.0, 1.0, 0.0]).expand(len(weights), -1)
    torch.testing.assert_close(power_mean(logps, one, power), logps[1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("power", POWERS)
def test_what_nobody_can_say_stays_impossible_and_one_zero_is_finite(power: float) -> None:
    logps, weights = _case(3)
    logps[:, 0, 5] = -torch.inf
    logps[0, 0, 6] = -torch.inf
    logps[:, 1] = -torch.inf
    got = power_mean(logps, weights, power)
    assert got[0, 5] == -torch.inf
    assert torch.isfinite(got[0, 6])
    assert bool((got[1] == -torch.inf).all())
    assert not bool(got.isnan().any())
