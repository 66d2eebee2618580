"""Float64 calculations of the four fusions with dictionaries of byte strings, by the book.

Written from the rules alone: no index tensors, no shortcuts, nothing shared with the package's
code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from langchain_ensemble.testing.cases import Case

Spoken = tuple[dict[bytes, float], float]
"""One member's probabilities in one row: of each key, and of END."""


def spoken(case: Case, member: int, row: int) -> Spoken:
    """Read one member's row as a dictionary."""
    distribution = case.distributions[member]
    probs: dict[bytes, float] = {}
    values = distribution.logprobs[row].double().exp().tolist()
    for key, value in zip(case.vocabularies[member], values, strict=True):
        if key is not None:
            probs[key] = probs.get(key, 0.0) + value
    return probs, math.exp(distribution.end[row].item())


def longest(key: bytes, keys: dict[bytes, float], proper: bool = False) -> bytes | None:
    """The longest of ``keys`` that is a prefix of ``key``."""
    for size in range(len(key) - proper, 0, -1):
        if key[:size] in keys:
            return key[:size]
    return None


def as_rows(case: Case, rows: list[Spoken]) -> Tensor:
    """Dictionaries as [N, U + 1] over union keys and END."""
    names: dict[bytes, int] = {}
    for member, keys in zip(case.vocabularies, case.alignment.members, strict=True):
        for key, place in zip(member, keys.to_union.tolist(), strict=True):
            if key is not None:
                names[key] = place
    out = torch.zeros(len(rows), case.alignment.union_size + 1, dtype=torch.float64)
    for row, (probs, end) in enumerate(rows):
        out[row, -1] = end
        for key, value in probs.items():
            out[row, names[key]] += value
    return out


def gac(case: Case) -> Tensor:
    """Weighted sum over the union."""
    rows = []
    for row, weights in enumerate(case.weights.double().tolist()):
        total: dict[bytes, float] = {}
        end = 0.0
        for member, weight in enumerate(weights):
            probs, e = spoken(case, member, row)
            end += weight * e
            for key, value in probs.items():
                total[key] = total.get(key, 0.0) + weight * value
        rows.append((total, end))
    return as_rows(case, rows)


def retold(main: dict[bytes, float], other: Spoken) -> Spoken:
    """An auxiliary in main's keys (rule 9)."""
    probs, end = other
    told = dict.fromkeys(main, 0.0)
    for key, value in probs.items():
        if key in main:
            group = [key] + [m for m in main if m not in probs and longest(m, probs) == key]
            mass = sum(main[m] for m in group)
            for m in group:
                told[m] += value * main[m] / mass if mass else value * (m == key)
        else:
            prefix = longest(key, main)
            if prefix is not None:
                told[prefix] += value
    total = sum(told.values()) + end
    return {k: v / total for k, v in told.items()}, end / total


def average(case: Case, mean: str) -> Tensor:
    """Arithmetic or geometric mean in main's token space."""
    tiny = math.log(torch.finfo(torch.float32).tiny)
    rows = []
    for row, weights in enumerate(case.weights.double().tolist()):
        main = spoken(case, 0, row)
        told = [main] + [
            retold(main[0], spoken(case, i, row)) for i in range(1, len(case.vocabularies))
        ]
        columns: list[bytes | None] = [*main[0], None]
        fused: dict[bytes | None, float] = {}
        for key in columns:
            values = [one[1] if key is None else one[0][key] for one in told]
            if mean == "arithmetic":
                fused[key] = sum(w * v for w, v in zip(weights, values, strict=True))
            else:
                logs = [math.log(v) if v > 0 else tiny for v in values]
                fused[key] = math.exp(sum(w * v for w, v in zip(weights, logs, strict=True)))
        total = sum(fused.values())
        rows.append(
            ({k: v / total for k, v in fused.items() if k is not None}, fused[None] / total)
        )
    return as_rows(case, rows)


def divided(
    said: list[Spoken], weights: list[float], i: int, candidates: list[bytes]
) -> dict[bytes, float]:
    """Member ``i``'s probability of each candidate, everything counted once."""
    probs = said[i][0]
    got = dict.fromkeys(candidates, 0.0)
    stands: dict[bytes, list[bytes]] = {}
    for key in candidates:
        on = key if key in probs else longest(key, probs, proper=True)
        if on is not None:
            stands.setdefault(on, []).append(key)
    others = [j for j in range(len(said)) if j != i]
    for on, group in stands.items():
        shares = [sum(weights[j] * said[j][0].get(key, 0.0) for j in others) for key in group]
        for key, share in zip(group, shares, strict=True):
            if sum(shares) > 0:
                part = share / sum(shares)
            elif on in candidates:
                part = float(key == on)
            else:
                part = 1 / len(group)
            got[key] += probs[on] * part
    return got


def unite(case: Case, union_k: int) -> Tensor:
    """Union top-k (rule 10)."""
    rows = []
    for row, weights in enumerate(case.weights.double().tolist()):
        said = [spoken(case, i, row) for i in range(len(weights))]
        candidates: list[bytes] = []
        for (probs, _), weight in zip(said, weights, strict=True):
            if weight > 0:
                best = sorted(probs, key=lambda k: -probs[k])[:union_k]
                candidates += [k for k in best if k not in candidates]
        fused = dict.fromkeys(candidates, 0.0)
        end = 0.0
        for i, (_, e) in enumerate(said):
            got = divided(said, weights, i, candidates)
            total = sum(got.values()) + e
            for key, value in got.items():
                fused[key] += weights[i] * value / total
            end += weights[i] * e / total
        rows.append((fused, end))
    return as_rows(case, rows)


def deepen(case: Case, anchors: list[int], steps: int = 5, lr: float = 0.15) -> Tensor:
    """The relative space and the search with torch's own optimiser, float64; END outside."""
    members = case.alignment.members
    tables = []
    for keys, embedding in zip(members, case.embeddings, strict=True):
        e = embedding.double()
        e = e / e.norm(dim=-1, keepdim=True)
        cosine = e @ e[keys.from_union[anchors]].T
        tables.append(torch.softmax(100 * cosine / cosine.norm(dim=-1, keepdim=True), -1))
    weights = case.weights.double()
    rows = len(weights)
    target = torch.zeros(rows, len(anchors), dtype=torch.float64)
    end = torch.zeros(rows, dtype=torch.float64)
    for i, distribution in enumerate(case.distributions):
        target += weights[:, i, None] * (distribution.logprobs.double().exp() @ tables[i])
        end += weights[:, i] * distribution.end.double().exp()
    target /= target.sum(-1, keepdim=True)
    out = torch.zeros(rows, case.alignment.union_size + 1, dtype=torch.float64)
    for row in range(rows):
        start = case.distributions[0].logprobs[row].double()
        keyed = start > -torch.inf
        z = start[keyed].clone().requires_grad_()
        optimiser = torch.optim.AdamW([z], lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10, eta_min=lr / 4)
        for _ in range(steps):
            optimiser.zero_grad()
            here = torch.softmax(z, -1) @ tables[0][keyed]
            loss = (target[row] * (target[row].log() - here.log())).sum() / len(anchors)
            loss.backward()
            optimiser.step()
            schedule.step()
        main = case.alignment.main.to_union[keyed]
        out[row, main] = (1 - end[row]) * torch.softmax(z.detach(), -1)
    out[:, -1] = end
    return out
