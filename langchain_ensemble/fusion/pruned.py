"""DeePEn's step over support and tail: the fast twin of the dense search.

One host read a step (:func:`_plans`): how wide the supports are, how many rows must be computed.
Everything after it has fixed shapes and could be captured. No work is ``V x A``: of the vocabulary
there are a handful of passes a row (best tokens, masses, the tail's levels, the answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from langchain_ensemble.fusion.rows import Request, Rows
from langchain_ensemble.fusion.said import Said
from langchain_ensemble.fusion.search import decay, search_support, tail_levels
from langchain_ensemble.fusion.support import SearchSettings, Support, support_of
from langchain_ensemble.fusion.voices import TINY

CHUNK_CELLS = 1 << 26
"""Relative rows held at a time, in float32 cells (256 MiB); at least one row's support."""

_TEMPORARIES = 4  # tensors [N, A] that live at the same time, about

AGREE = 1e-5
"""Members agree with main where no anchor's share differs by more than this, relatively."""


@dataclass(frozen=True)
class _Plan:
    """What one member's rows cost in this step.

    Attributes:
        member: Which member.
        support: Its supports.
        size: Slots of the widest.
        request: The rows asked for.
        count: Distinct rows among them.
        missing: Those that must be computed.
    """

    member: int
    support: Support
    size: int
    request: Request
    count: int
    missing: int


def pruned(said: Said, rows: Sequence[Rows], settings: SearchSettings) -> Tensor:
    """Fused log-probabilities of main's keys, [N, V].

    Args:
        said: What the members say.
        rows: Each member's rows. Nobody else may use them meanwhile.
        settings: Of the search.

    Returns:
        [N, V]; with ``said.end`` rows sum to one.
    """
    size = len(said.logits)
    fits = size == 1 or _TEMPORARIES * size * len(rows[0].mean) <= CHUNK_CELLS
    start = said.start
    plans = _plans(said, start, rows, settings) if fits else []
    if size > 1 and any(plan.count > rows[plan.member].room for plan in plans):
        fits = False
    if not fits:
        halves = (said.rows(slice(size // 2)), said.rows(slice(size // 2, None)))
        return torch.cat([pruned(part, rows, settings) for part in halves])
    for plan in plans:
        rows[plan.member].fetch(plan.request, plan.missing)
    others = torch.zeros(len(start), len(rows[0].mean), device=start.device)
    for plan in plans[1:]:
        mine = plan.support.relative(rows[plan.member], plan.size)  # [N, A]: all that crosses
        others = others + said.share[:, plan.member, None] * mine.to(start.device)
    return _searched(said, start, others, plans[0], rows[0], settings)


def normalised(target: Tensor, here: Tensor) -> Tensor:
    """Rows of ``target`` [N, A] scaled to sum 1; where nobody says a key, main's own place."""
    mass = target.sum(-1, keepdim=True)
    return torch.where(mass > TINY, target / mass.clamp_min(TINY), here)


def agree(target: Tensor, here: Tensor) -> Tensor:
    """Rows [N] in which no anchor's share differs from main's by more than :data:`AGREE`."""
    return ((target - here).abs() <= AGREE * here).all(-1)


def decayed(logits: Tensor, left: Tensor | float) -> Tensor:
    """Logits times the decay; -inf stays -inf whatever the factor."""
    return torch.where(logits == -torch.inf, -torch.inf, logits * left)


def _plans(
    said: Said, start: Tensor, rows: Sequence[Rows], settings: SearchSettings
) -> list[_Plan]:
    """Main's plan and those of the auxiliaries that have a say; the step's one host read."""
    run, supports = [0], [support_of(start, said.level.exp(), settings)]
    for i, (part, mass) in enumerate(zip(said.parts[1:], said.masses[1:], strict=True), start=1):
        if part is not None:
            run.append(i)
            supports.append(support_of(part, mass.exp(), settings))
    requests = [rows[i].request(s.ids, s.read) for i, s in zip(run, supports, strict=True)]
    told = [(said.share > 0).any(0).long()]
    told += [
        torch.cat([support.size[None], request.counts]).to(start.device)
        for support, request in zip(supports, requests, strict=True)
    ]
    numbers = torch.cat(told).tolist()  # the one host read
    heard, numbers = numbers[: len(rows)], numbers[len(rows) :]
    plans = []
    for at, i in enumerate(run):
        size, count, missing = numbers[3 * at : 3 * at + 3]
        size = _slots(size, supports[at])
        if i == 0 or heard[i]:
            plans.append(_Plan(i, supports[at], size, requests[at], count, missing))
    return plans


def _slots(size: int, support: Support) -> int:
    """As many slots as the widest support on a CPU; elsewhere a power of two, for fixed shapes."""
    if support.ids.device.type == "cpu":
        return size
    return min(1 << max(size - 1, 15).bit_length(), support.ids.shape[-1])


def _searched(
    said: Said, start: Tensor, others: Tensor, plan: _Plan, rows: Rows, settings: SearchSettings
) -> Tensor:
    """The search and main's row after it; fixed shapes, no host read."""
    support, size = plan.support, plan.size
    ids, top, kept = (t[:, :size] for t in (support.ids, support.logprobs, support.kept))
    rest = start.scatter(-1, ids, top.masked_fill(kept, -torch.inf))
    tails = tail_levels(rest, settings.steps, settings.rate)  # [T + 1, N]
    tail = support.tail(rows)
    inside = top.masked_fill(~kept, -torch.inf)  # [N, S]
    chunk = max(1, CHUNK_CELLS // (size * len(rows.mean)))
    begin = _Start(ids, inside, tail, tails.T, said.share[:, :1], others)
    parts = [
        _climbed(begin.rows(slice(at, at + chunk)), rows, settings)
        for at in range(0, len(start), chunk)
    ]
    found, same = (torch.cat(part) for part in zip(*parts, strict=True))
    left = decay(settings.steps, settings.rate)
    level = torch.logaddexp(found.logsumexp(-1), tails[-1])
    offset = (said.keys - torch.where(same, said.level, level))[:, None]
    factor = torch.where(same, 1.0, left)[:, None]
    moved = torch.where(kept & ~same[:, None], found, decayed(top, factor))
    return (decayed(said.logits, factor) + offset).scatter(-1, ids, moved + offset)


@dataclass(frozen=True)
class _Start:
    """Where the search of N rows begins and what pulls it.

    Attributes:
        ids: [N, S] main's support.
        logits: [N, S] main's logits of it, -inf in empty slots.
        tail: [N, A] where main's tail stands.
        levels: [N, T + 1] the tail's logit at each step.
        share: [N, 1] main's.
        others: [N, A] the auxiliaries' part of the target.
    """

    ids: Tensor
    logits: Tensor
    tail: Tensor
    levels: Tensor
    share: Tensor
    others: Tensor

    def rows(self, at: slice) -> _Start:
        """Some of the rows."""
        return _Start(*(getattr(self, one.name)[at] for one in fields(self)))


def _climbed(begin: _Start, rows: Rows, settings: SearchSettings) -> tuple[Tensor, Tensor]:
    """[N, S] logits after the search, and [N] where the members agree with main."""
    table = rows(begin.ids)
    place = torch.bmm(begin.logits.exp()[:, None], table)[:, 0] + begin.tail
    here = place / place.sum(-1, keepdim=True).clamp_min(TINY)
    target = normalised(begin.others + begin.share * place, here)
    mass = begin.tail.sum(-1, keepdim=True)
    tail_row = torch.where(mass > TINY, begin.tail / mass.clamp_min(TINY), rows.mean)
    found = search_support(
        begin.logits, table, begin.levels.T, tail_row, target, settings.steps, settings.rate
    )
    return found, agree(target, here)
