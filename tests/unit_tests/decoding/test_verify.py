"""Drafts in sampling: the fused distribution, by chi-square against its explicit numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.fusing import voice_distribution
from langchain_ensemble.decoding.verify import accept
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.requests import plain_task

DRAWS = 40_000


def chi_square(observed: dict[Any, int], expected: dict[Any, float]) -> tuple[float, int]:
    """Statistic and degrees of freedom; what is expected less than 5 times is pooled."""
    total = sum(observed.values())
    usual = {key: p * total for key, p in expected.items() if p * total >= 5}
    pairs = [(observed.get(key, 0), mean) for key, mean in usual.items()]
    rest = total - sum(mean for _, mean in pairs)
    if rest >= 5:
        pairs.append((total - sum(count for count, _ in pairs), rest))
    return sum((count - mean) ** 2 / mean for count, mean in pairs), len(pairs) - 1


def plausible(statistic: float, freedom: int) -> bool:
    """Whether it lies below the 99.99 % quantile (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * freedom)
    return statistic < freedom * (1 - spread + 3.72 * spread**0.5) ** 3


def test_a_key_is_drawn_from_the_fused_distribution_whatever_proposes() -> None:
    torch.manual_seed(0)
    for sharp in (0.3, 1.0, 3.0):
        wanted = torch.softmax(sharp * torch.randn(12), -1)
        known = torch.softmax(sharp * torch.randn(12), -1)
        known[3] = 0.0
        known = known / known.sum()
        proposals = torch.multinomial(known, DRAWS, replacement=True)
        got = accept(
            wanted.expand(DRAWS, -1), known.expand(DRAWS, -1), proposals,
            torch.rand(DRAWS, dtype=torch.float64), torch.rand(DRAWS, dtype=torch.float64),
        )  # fmt: skip
        counts = Counter(got.tolist())
        assert plausible(*chi_square(counts, dict(enumerate(wanted.tolist()))))
        distance = float((wanted - known).abs().sum() / 2)
        rate = float((got == proposals).float().mean())
        assert rate == pytest.approx(1 - distance, abs=0.02)


def explicit(owner: Ensemble, prompt: str, request: RequestParams, steps: int) -> dict[Any, float]:
    """Probability of every answer of so many ids, from uncached forwards; equal tokenizers."""
    task = plain_task(owner._ready(), owner.params, request)
    start = [voice.member.prompt(prompt).ids for voice in task.voices]
    found: dict[Any, float] = {(): 1.0}
    for _ in range(steps):
        longer: dict[Any, float] = {}
        for answer, probability in found.items():
            if answer[-1:] == (None,):
                longer[answer] = probability
                continue
            said = []
            for voice, ids in zip(task.voices, start, strict=True):
                logits = voice.member.session().prefill([MemberPrompt((*ids, *answer))])
                said.append(voice_distribution(voice, logits, [0]))
            assert task.fuser is not None
            fused = task.fuser(said, torch.tensor([task.weights]))
            scores = torch.cat([fused.logprobs, fused.end[:, None]], -1)
            for processor in task.sampling.filters:
                scores = processor(torch.zeros(1, 0, dtype=torch.long), scores)
            probs = torch.softmax(scores, -1)[0]
            width = fused.logprobs.shape[-1]
            for column in probs.nonzero()[:, 0].tolist():
                key = column if fused.keys is None else int(fused.keys[0, min(column, width - 1)])
                longer[(*answer, key if column < width else None)] = probability * float(
                    probs[column]
                )
        found = longer
    return found


@pytest.mark.parametrize("fusion", ["average", "unite"])
def test_answers_are_drawn_from_the_fused_distribution(shared: Path, fusion: str) -> None:
    folders = [str(shared / "models" / name) for name in ("stories260K", "bitllama-1M")]
    settings: Any = {"name": "average", "mean": "arithmetic"} if fusion == "average" else fusion
    rows, steps = 600, 4
    request = RequestParams(
        max_tokens=steps + 2, temperature=1.3, top_k=3, n=rows, speculation="on"
    )
    with Ensemble(EnsembleParams(members=folders, fusion=settings)) as owner:
        expected = explicit(owner, "Once upon a time", request, steps)
        with owner.open(["Once upon a time"], request) as decoding:
            ((*answers,),) = decoding.answers()
            ahead = decoding._loop._ahead
        assert ahead.accepted > 0.4 * ahead.drafted
        counts = Counter(tuple(t.id for t in answer.tokens[:steps]) for answer in answers)
        assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
        assert plausible(*chi_square(counts, expected))
