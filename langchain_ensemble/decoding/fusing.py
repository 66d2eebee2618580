"""From every voice's logits to one fused distribution a row; shared by decoding and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    MemberDistribution,
    MemberKeys,
    member_distribution,
)


def keys_of(voice: Voice) -> tuple[MemberKeys, Tensor]:
    """A voice's keys and allowed ids; they exist wherever there is more than one member."""
    assert voice.keys is not None
    assert voice.allowed is not None
    return voice.keys, voice.allowed


def voice_distribution(
    voice: Voice, logits: Tensor, states: Sequence[int], legal: Tensor | None = None
) -> MemberDistribution:
    """One voice's distribution over its keys, with bytes that cannot be completed masked.

    Args:
        voice: The voice.
        logits: [N, V_i] float32.
        states: UTF-8 state of each row's answer.
        legal: [N, V_i] bool, ids (END ids too) that a grammar allows; None: all.

    Returns:
        The dense distribution, on the voice's device.
    """
    keys, allowed = keys_of(voice)
    same = all(state == states[0] for state in states)
    mask = allowed[states[0]] if same else allowed[torch.tensor(states, device=allowed.device)]
    return member_distribution(logits, keys, mask if legal is None else mask & legal)


def row_weights(
    base: Sequence[float],
    distributions: Sequence[MemberDistribution],
    silent: Sequence[Sequence[bool]],
    boundary: Sequence[Tensor | None],
) -> Tensor:
    """Effective weights of N rows.

    Args:
        base: The request's weights, one a voice.
        distributions: One a voice.
        silent: [voice][row], rows in which a voice cannot speak (inside a character, say).
        boundary: c_i [N] a voice, None where it is 1.

    Returns:
        [N, voices] float32 on main's device, rows sum to 1.
    """
    logprobs = distributions[0].logprobs
    device, rows = logprobs.device, len(logprobs)
    abstain, ends = [], []
    for distribution, quiet, c in zip(distributions, silent, boundary, strict=True):
        column = torch.zeros(rows, dtype=torch.bool, device=device)
        if distribution.abstain is not None:
            column |= distribution.abstain.to(device)
        if any(quiet):
            column |= torch.tensor(quiet, device=device)
        abstain.append(column)
        ends.append(torch.ones(rows, device=device) if c is None else c.to(device))
    weights = torch.tensor([list(base)], device=device).expand(rows, -1)
    return effective_weights(weights, torch.stack(abstain, -1), torch.stack(ends, -1))


def to_device(distribution: MemberDistribution, device: torch.device) -> MemberDistribution:
    """The distribution on main's device, where fusion runs."""
    if distribution.logprobs.device == device:
        return distribution
    moved: dict[str, Any] = {
        name: value.to(device)
        for name, value in vars(distribution).items()
        if torch.is_tensor(value)
    }
    return replace(distribution, **moved)


def spread(
    distributions: Sequence[MemberDistribution], weights: Tensor, places: Sequence[int], size: int
) -> tuple[list[MemberDistribution | None], Tensor]:
    """Put some voices at their places among all members.

    Args:
        distributions: One a voice.
        weights: [N, voices].
        places: Each voice's place in the alignment.
        size: How many places there are.

    Returns:
        One entry a member (None: not run) and [N, size] weights.
    """
    moved = [to_device(d, weights.device) for d in distributions]
    if len(places) == size:
        return list(moved), weights
    entries: list[MemberDistribution | None] = [None] * size
    wide = weights.new_zeros(len(weights), size)
    for column, place in enumerate(places):
        entries[place] = moved[column]
        wide[:, place] = weights[:, column]
    return entries, wide


def check_finite(voices: Sequence[Voice], logits: Sequence[Tensor]) -> None:
    """Say which voice gave no numbers; called when a chosen key's log-probability is NaN.

    Raises:
        MemberError: Always, naming the member.
    """
    for voice, row in zip(voices, logits, strict=True):
        bad = int(row.isnan().any(-1).sum())
        if bad:
            member = voice.member
            raise MemberError(
                f"member {member.name!r} gave NaN logits in {bad} of {len(row)} row(s) "
                f"({member.dtype} on {member.device}); its weights are damaged or overflow: use "
                "dtype='bfloat16' or 'float32'"
            )
    raise MemberError("the fusion gave NaN where every member's logits are numbers; it is at fault")


def checked(fused: object) -> FusedDistribution:
    """What a fusion gave, if it is what a fusion gives.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(fused, FusedDistribution):
        raise ConfigError(
            f"the fusion gave a {type(fused).__name__}; a fusion gives a FusedDistribution"
        )
    return fused


def or_end(fused: FusedDistribution) -> tuple[FusedDistribution, Tensor]:
    """Where no key and no END has any mass left, only END can come; says in which rows [N]."""
    dead = (fused.logprobs.amax(-1) == -torch.inf) & (fused.end == -torch.inf)
    return replace(fused, end=torch.where(dead, 0.0, fused.end)), dead


def say(voice: Voice, distribution: MemberDistribution, key: Tensor) -> Tensor:
    """A voice's own log-probability of one chosen union key a row (-1: END).

    Args:
        voice: The voice.
        distribution: Its dense distribution.
        key: [N] on main's device.

    Returns:
        [N] on main's device; -inf where the voice lacks the key, NaN where its logits are NaN.
    """
    keys, _ = keys_of(voice)
    chosen = key.to(distribution.logprobs.device)
    token = keys.from_union[chosen.clamp_min(0)]
    own = distribution.logprobs.gather(1, token.clamp_min(0)[:, None])[:, 0]
    own = torch.where((token < 0) & ~distribution.end.isnan(), -torch.inf, own)
    return torch.where(chosen < 0, distribution.end, own).to(key.device)
