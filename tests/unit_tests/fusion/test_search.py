"""The search's schedule, its support and tail, and the certificate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.search import (
    END,
    UNKNOWN,
    certified,
    check_search,
    decay,
    rates,
    reach,
    search,
    search_support,
    tail_levels,
)


def _case(seed: int, rows: int = 4, width: int = 30, anchors: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    relative = torch.softmax(torch.randn(width, anchors, generator=generator) * 3, -1)
    logits = torch.randn(rows, width, generator=generator) * 3
    target = torch.softmax(torch.randn(rows, anchors, generator=generator) * 3, -1)
    return logits, relative, target


def test_schedule_is_torchs_own() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.AdamW([weight], lr=0.15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10, eta_min=0.15 / 4)
    seen = []
    for _ in range(10):
        seen.append(optimiser.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        optimiser.step()
        schedule.step()
    assert rates(10, 0.15) == pytest.approx(seen)


@pytest.mark.parametrize(
    ("steps", "lr", "ratio"),
    [(1, 0.05, 1.11), (5, 0.15, 3.91), (5, 0.3, 15.6), (10, 0.1, 3.85), (10, 0.5, 1017)],
)
def test_reach_is_the_published_bound(steps: int, lr: float, ratio: float) -> None:
    """Best over second probability above which nothing can change the best."""
    assert math.exp(2 * reach(steps, lr) / decay(steps, lr)) == pytest.approx(ratio, rel=5e-3)


@pytest.mark.parametrize("steps", [-1, 11, 2.5, True])
def test_steps_outside_the_schedule_are_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match=rf"search_steps={steps}.*0\.\.10"):
        check_search(steps, 0.15)


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_bad_rates_are_refused(lr: float) -> None:
    with pytest.raises(ConfigError, match="search_lr"):
        check_search(5, lr)


def test_no_logit_moves_further_than_its_reach() -> None:
    for seed in range(20):
        logits, relative, target = _case(seed)
        for steps, lr in ((1, 0.5), (5, 0.15), (10, 0.5)):
            moved = search(logits, relative, target, steps, lr) - decay(steps, lr) * logits
            assert float(moved.abs().max()) <= reach(steps, lr) * (1 + 1e-5)


def test_anchor_without_mass_gives_no_nan() -> None:
    relative = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = search(torch.zeros(1, 2), relative, torch.tensor([[0.0, 1.0]]), 5, 0.15)
    assert bool(torch.isfinite(found).all())


def test_masked_logits_stay_masked() -> None:
    logits, relative, target = _case(0)
    logits[:, ::3] = -torch.inf
    found = search(logits, relative, target, 10, 0.5)
    assert torch.equal(found == -torch.inf, logits == -torch.inf)
    assert not bool(found.isnan().any())


def test_whole_support_is_the_dense_search() -> None:
    logits, relative, target = _case(1)
    nothing = torch.full_like(logits, -torch.inf)
    tails = tail_levels(nothing, 5, 0.15)
    found = search_support(
        logits, relative.expand(4, -1, -1), tails, relative.mean(0).expand(4, -1), target, 5, 0.15
    )
    torch.testing.assert_close(found, search(logits, relative, target, 5, 0.15), atol=2e-5, rtol=0)


def test_the_tail_takes_no_step_and_keeps_its_own_decay() -> None:
    """Equal rows everywhere: no gradient, so all that is left is the decay, in the tail too."""
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0)) * 3
    relative = torch.full((10, 4), 0.25)
    target = torch.softmax(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)), -1)
    rest = logits.clone()
    rest[:, :3] = -torch.inf
    found = search_support(
        logits[:, :3],
        relative[:3].expand(2, -1, -1),
        tail_levels(rest, 5, 0.15),
        relative[0].expand(2, -1),
        target,
        5,
        0.15,
    )
    torch.testing.assert_close(found, decay(5, 0.15) * logits[:, :3], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.15), (5, 0.15), (10, 0.5)])
def test_certified_rows_are_never_changed(steps: int, lr: float, acceptance_scale: int) -> None:
    """Random and adversarial targets, gaps just above the bound."""
    bound = 2 * reach(steps, lr) / decay(steps, lr)
    flipped = 0
    for seed in range(30 * acceptance_scale):
        logits, relative, _ = _case(seed)
        best = logits.argmax(-1)
        second = logits.scatter(-1, best[:, None], -torch.inf).amax(-1)
        wrong = logits.scatter(-1, best[:, None], -torch.inf).argmax(-1)
        target = 0.999 * relative[wrong] + 0.001 * relative.mean(0)  # pulls to the runner-up
        for factor, sure in ((1.002, True), (0.5, False)):
            shifted = logits.scatter(-1, best[:, None], (second + factor * bound)[:, None])
            said = certified(shifted, torch.zeros(4), steps, lr)
            assert bool(((said == best) if sure else (said == UNKNOWN)).all())
            found = search(shifted, relative, target, steps, lr).argmax(-1)
            if sure:
                assert torch.equal(found, best)
            else:
                flipped += int((found != best).sum())
    assert flipped > 0, "the targets must be able to change something"


def test_certificate_for_end() -> None:
    logits = torch.tensor([[9.0, 0.0, -1.0]]).expand(3, -1)
    said = certified(logits, torch.tensor([0.6, 0.001, 0.45]), 5, 0.15)
    assert said.tolist() == [END, 0, 0]
    flat = torch.tensor([[0.0, -1.0, -1.0]])
    assert certified(flat, torch.tensor([0.4]), 5, 0.15).tolist() == [UNKNOWN]
