"""What is drawn follows the stated distribution: alone transformers' own, fused the fused one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import member_distribution
from langchain_ensemble.params import EnsembleParams, RequestParams

PROMPT = "Once upon a time, there was a little"
DRAWS = 3000

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.7, "top_k": 12},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.4},
]


def processors(settings: dict[str, Any]) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if "repetition_penalty" in settings:
        made.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    made.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        made.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        made.append(TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        made.append(MinPLogitsWarper(settings["min_p"]))
    return made


def chi_square(counts: Counter[int], expected: torch.Tensor) -> float:
    """Statistic over columns expected at least five times, the rest pooled; in standard units."""
    total = sum(counts.values())
    often = [int(i) for i in (expected * total >= 5).nonzero()[:, 0]]
    observed = [counts[i] for i in often]
    wanted = [float(expected[i]) * total for i in often]
    observed.append(total - sum(observed))
    wanted.append(max(total - sum(wanted), 1e-9))
    pairs = [(o, w) for o, w in zip(observed, wanted, strict=True) if w >= 5]
    freedom = max(len(pairs) - 1, 1)
    statistic = sum((o - w) ** 2 / w for o, w in pairs)
    return (statistic - freedom) / (2 * freedom) ** 0.5


def drawn(owner: Ensemble, settings: dict[str, Any]) -> Counter[int]:
    request = RequestParams(max_tokens=1, n=DRAWS, seed=7, **settings)
    answers = owner.generate([PROMPT], request)[0]
    return Counter(-1 if a.tokens[0].id is None else a.tokens[0].id for a in answers)


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_member_draws_what_transformers_would(shared: Path, settings: dict[str, Any]) -> None:
    folder = str(shared / "models" / "stories260K")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = processors(settings)(ids, model(ids).logits[:, -1])
    expected = torch.softmax(scores[0], -1)
    with Ensemble(EnsembleParams(members=[folder])) as owner:
        counts = drawn(owner, settings)
    assert all(expected[i] > 0 for i in counts if i >= 0)
    assert abs(chi_square(counts, expected)) < 4


@pytest.mark.parametrize("settings", SETTINGS)
def test_fused_draws_follow_the_fused_distribution(shared: Path, settings: dict[str, Any]) -> None:
    members = [str(shared / "models" / n) for n in ("stories260K", "bitllama-1M")]
    with Ensemble(EnsembleParams(members=members, fusion="average")) as owner:
        built: Any = owner._ready()
        said = []
        for voice in built.voices:
            logits = voice.member.session().prefill([voice.member.prompt(PROMPT)])
            said.append(member_distribution(logits, voice.keys, voice.allowed[0]))
        fused = built.fuser(said, torch.tensor([[0.5, 0.5]]))
        ids = torch.tensor([built.members[0].prompt(PROMPT).ids])
        ids = ids[built.voices[0].keys.representative[ids] >= 0][None]  # control ids are no keys
        scores = torch.cat([fused.logprobs, fused.end[:, None]], -1)
        expected = torch.softmax(processors(settings)(ids, scores)[0], -1)
        counts = drawn(owner, settings)
    assert all(expected[i] > 0 for i in counts if i >= 0)
    assert abs(chi_square(counts, expected)) < 4
