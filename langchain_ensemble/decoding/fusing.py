"""From every voice's logits to one fused distribution a row; shared by decoding and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.choose import discounted, effective_weights
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    Fuser,
    MemberDistribution,
    MemberKeys,
    at_home,
    bounded_distribution,
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
    keys, _ = keys_of(voice)
    highest = voice.ceilings
    speaks: bool | Tensor
    if all(state == states[0] for state in states):
        speaks, highest = states[0] == START, highest[states[0]]  # there text and END may come
    else:
        each = torch.tensor(states, device=highest.device)
        speaks, highest = each == START, highest[each]
    if legal is not None:
        speaks = False
        highest = torch.where(legal, highest, -torch.inf)
    return bounded_distribution(logits, keys, highest, speaks=speaks)


def row_weights(
    base: Sequence[float] | Sequence[tuple[float, ...]] | Tensor,
    distributions: Sequence[MemberDistribution],
    silent: Sequence[Sequence[bool]],
    boundary: Sequence[Tensor | None],
) -> Tensor:
    """Effective weights of N rows.

    Args:
        base: The request's weights, one a voice; or each row's own, as tuples or as a tensor
            [N, voices] on main's device.
        distributions: One a voice.
        silent: [voice][row], rows in which a voice cannot speak (inside a character, say).
        boundary: c_i [N] a voice, None where it is 1.

    Returns:
        [N, voices] float32 on main's device, rows sum to 1.
    """
    main = distributions[0].logprobs
    rows = len(main)
    weights = base if isinstance(base, Tensor) else _as_rows(tuple(base), main.device)
    return weighed(weights.expand(rows, -1), *standing(distributions, silent, boundary))


def standing(
    distributions: Sequence[MemberDistribution],
    silent: Sequence[Sequence[bool]],
    boundary: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor | None]:
    """Who has a say in N rows, whatever the weights are.

    Args:
        distributions: One a voice.
        silent: As for :func:`row_weights`.
        boundary: As for :func:`row_weights`.

    Returns:
        [N, voices] bool, who abstains, and [N, voices] float32, c_i; None where nobody does, and
        where all are 1.
    """
    main = distributions[0].logprobs
    device, rows = main.device, len(main)
    mute = [d.abstain for d in distributions if d.abstain is not None]
    hushed = any(any(quiet) for quiet in silent)
    ends: Tensor | None = None
    if any(c is not None for c in boundary):
        one = main.new_ones(rows, dtype=torch.float32)
        ends = torch.stack([one if c is None else at_home(c, device) for c in boundary], -1)
    if not mute and not hushed:
        return None, ends
    none = main.new_zeros(rows, dtype=torch.bool)
    columns = [none if d.abstain is None else d.abstain.to(device) for d in distributions]
    abstain = torch.stack(columns, -1)
    if hushed:
        abstain = abstain | torch.tensor([list(quiet) for quiet in silent], device=device).T
    return abstain, ends


def weighed(weights: Tensor, abstain: Tensor | None, ends: Tensor | None) -> Tensor:
    """Weights [N, voices] after what :func:`standing` gave; a smooth function of the weights."""
    if abstain is not None:
        return effective_weights(
            weights, abstain, torch.ones_like(weights) if ends is None else ends
        )
    return weights if ends is None else discounted(weights, ends)


def all_or_main(weights: Tensor) -> Tensor:
    """Leave main alone in rows in which not every voice is heard, for fusions that need them all.

    Args:
        weights: [N, voices], rows sum to 1.

    Returns:
        [N, voices].
    """
    alone = torch.zeros_like(weights)
    alone[:, 0] = 1.0
    return torch.where((weights > 0).all(-1, keepdim=True), weights, alone)


@lru_cache(maxsize=64)
def _as_rows(
    weights: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device
) -> Tensor:
    """[1 or N, voices] float32; not to be written to."""
    each = weights if isinstance(weights[0], tuple) else (weights,)
    with torch.inference_mode(False):
        return torch.tensor(each, dtype=torch.float32, device=device)


def to_device(distribution: MemberDistribution, device: torch.device) -> MemberDistribution:
    """The distribution on main's device, where fusion runs."""
    if distribution.logprobs.device == device:
        return distribution
    moved: dict[str, Any] = {
        name: value.to(device)
        for name, value in vars(distribution).items()
        if torch.is_tensor(value)
    }
    if distribution.paths is not None:
        moved["paths"] = distribution.paths.to(device)
    return replace(distribution, **moved)


def spread(
    distributions: Sequence[MemberDistribution],
    weights: Tensor,
    places: Sequence[int],
    size: int,
    fuser: Fuser,
) -> tuple[list[MemberDistribution | None], Tensor]:
    """Put some voices at their places among all members.

    Args:
        distributions: One a voice.
        weights: [N, voices].
        places: Each voice's place in the alignment.
        size: How many places there are.
        fuser: Whether it takes distributions where they are, or all on main's device.

    Returns:
        One entry a member (None: not run) and [N, size] weights.
    """
    moved = list(distributions)
    if not getattr(fuser, "apart", False):
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
        bad = int((row.isnan().any(-1) | (row.amax(-1) == -torch.inf)).sum())
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


def say(
    voices: Sequence[Voice], distributions: Sequence[MemberDistribution], key: Tensor
) -> Tensor:
    """Every voice's own log-probability of one chosen union key a row (-1: END).

    Args:
        voices: The voices.
        distributions: Their dense distributions.
        key: [N] on main's device.

    Returns:
        [voices, N] on main's device; -inf where a voice lacks the key, NaN where its logits are
        NaN.
    """
    home, inside = key.device, key.clamp_min(0)
    tokens, own, ends = [], [], []
    for voice, distribution in zip(voices, distributions, strict=True):
        said = distribution.logprobs
        token = keys_of(voice)[0].from_union.take(at_home(inside, said.device))
        tokens.append(at_home(token, home))
        own.append(at_home(said.gather(1, token.clamp_min(0)[:, None]), home))
        ends.append(at_home(distribution.end, home))
    end = torch.stack(ends)
    nothing = end - torch.inf  # NaN stays NaN
    found = torch.where(torch.stack(tokens) < 0, nothing, torch.cat(own, 1).T)
    return torch.where(key < 0, end, found)
