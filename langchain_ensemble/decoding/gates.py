"""Gates: at which positions members are fused; elsewhere main speaks alone, exactly.

``"threshold"`` (GaC, EMNLP 2024): fused only where main is unsure, its largest probability of a key
or END below a bound. Needs nobody but main. ``"safe"`` (after SAFE, ICLR 2026): fused only

* where all members end a token, every ``c_i >= 1/2`` (``boundary.py``);
* and without consensus, ``sum_k w_k m_k(t) <= 1/2``, where ``t`` is main's best key and ``m_k(t)``
  member k's probability of all keys that start with ``t``: a member that says "Incorrect" agrees
  with one that says "Inc". The weights are those that the fusion would get.

Then sharpened where the best fused probability is below 1/2: a key above 0.1 gets what all keys
that start with it have, and the row is renormalised. END stands beside the keys: it starts no key
and no key starts it, so its mass is its own in both sums, and it can be ``t``.

All of it is per row, on the device; no number of a vocabulary's size leaves it. The rules are the
same with drafts and without, so the answer does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import (
    FusedDistribution,
    MemberDistribution,
    MemberKeys,
    TokenSpace,
)

OPEN, SURE, BOUNDARY, CONSENSUS = range(4)
REASONS = (None, "sure", "boundary", "consensus")
"""Why main spoke alone, by the number that stands for it on the device."""

ENDS = 0.5
"""c_i from which on a member ends a token where main does."""

FLAT = 0.5
"""Best probability below which a fused row is sharpened."""

STRONG = 0.1
"""Probability above which a key gets that of the keys it begins; nine keys have it at most."""


@runtime_checkable
class Ordered(Protocol):
    """The union's keys in byte order; see ``vocab/union_keys.py``."""

    def ranges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[U] rank of each key, and [U] the rank after the last one that starts with it."""

    def ranks_of(self, keys: MemberKeys) -> Tensor:
        """[V_i] rank of each id of a member, -1 where it has no key."""


@dataclass(frozen=True)
class Gate:
    """A gate's settings; each rule reads its own.

    Attributes:
        name: ``"always"``, ``"threshold"`` or ``"safe"``.
        below: Threshold: main is unsure where its largest probability is below this.
        consensus: Safe: members agree where main's best key has more than this among them.
        sharpen: Safe: whether flat rows are sharpened.
    """

    name: str
    below: float = 0.5
    consensus: float = 0.5
    sharpen: bool = True

    @property
    def sharpens(self) -> bool:
        """Whether fused rows may be sharpened."""
        return self.name == "safe" and self.sharpen


def read_gate(given: str | Mapping[str, Any]) -> Gate:
    """Read a gate in either of its forms.

    Args:
        given: A name, or a mapping with ``name`` and settings, as checked by ``params``.

    Returns:
        The gate.
    """
    if isinstance(given, str):
        return Gate(given)
    known = {one.name for one in fields(Gate)}
    return Gate(**{name: value for name, value in given.items() if name in known})


# the rules, pure


def sure(main: MemberDistribution, below: float) -> Tensor:
    """Where main's largest probability is not below a bound, [N] bool; nowhere if it abstains."""
    return torch.maximum(main.logprobs.amax(-1), main.end).exp() >= below


def agreement(
    distributions: Sequence[MemberDistribution], weights: Tensor, ranks: Sequence[Tensor],
    rank: Tensor, after: Tensor,
) -> Tensor:  # fmt: skip
    """How much the members together give to what main would say, and to all that starts so.

    ``sum_k w_k m_k(t)``: t main's best key or END, ``m_k(t)`` the mass of keys that start with t.

    Args:
        distributions: One a voice, main first, each on its own device.
        weights: [N, voices].
        ranks: [V_i] of each voice, rank of each id in the union's byte order, -1: no key.
        rank: [U] rank of each union key.
        after: [U] the rank after the last key that starts with a union key.

    Returns:
        [N] float32 on main's device.
    """
    main, home = distributions[0], weights.device
    best, key = main.logprobs.max(-1)
    ends = main.end > best
    low, high = rank[key][:, None], after[key][:, None]
    together = torch.zeros_like(main.end)
    for column, (one, own) in enumerate(zip(distributions, ranks, strict=True)):
        place = own.device
        inside = (own >= low.to(place)) & (own < high.to(place))
        mass = torch.where(inside, one.logprobs.exp(), 0.0).sum(-1).to(home)
        mass = torch.where(ends, one.end.exp().to(home), mass)
        spoken = weights[:, column] > 0  # what a silent member holds is never read
        together = together + torch.where(spoken, mass * weights[:, column], 0.0)
    return together


def apart(
    distributions: Sequence[MemberDistribution], boundary: Sequence[Tensor | None], like: Tensor
) -> Tensor:
    """Where some member is inside a token of its own, [N] bool; one without a say is not asked.

    Args:
        distributions: One a voice.
        boundary: c_i [N] a voice, None where it is 1.
        like: [N] on main's device.
    """
    found = torch.zeros_like(like, dtype=torch.bool)
    for one, ends in zip(distributions, boundary, strict=True):
        if ends is None:
            continue
        inside = ends < ENDS
        if one.abstain is not None:
            inside = inside & ~one.abstain.to(inside.device)
        found = found | inside.to(found.device)
    return found


def sharpened(
    fused: FusedDistribution, asked: Tensor, rank: Tensor, after: Tensor
) -> FusedDistribution:
    """Give strong keys what the keys that they begin have, where no key is likely.

    ``P'(t) = P(t) + sum of P(u), u != t starts with t``, for ``P(t) > 0.1``; renormalised with END.

    Args:
        fused: What the members say together, [N, S].
        asked: [N] bool, rows that may be sharpened; only those without a probability of 1/2 are.
        rank: [U] rank of each union key in byte order.
        after: [U] the rank after the last key that starts with it.

    Returns:
        The distribution; other rows are as they were, bit by bit.
    """
    flat = asked & (torch.maximum(fused.logprobs.amax(-1), fused.end).exp() < FLAT)
    if flat.device.type == "cpu" and not bool(flat.any()):
        return fused
    named, size = fused.keys, fused.logprobs.shape[-1]
    ranks = rank[:size] if named is None else torch.where(named < 0, -1, rank[named.clamp_min(0)])
    probs = fused.logprobs.exp()
    strong, columns = probs.topk(min(9, size), -1)
    keys = columns if named is None else named.gather(1, columns).clamp_min(0)
    low, high = rank[keys], after[keys]
    got = probs.clone()
    for j in range(strong.shape[-1]):
        inside = (ranks >= low[:, j, None]) & (ranks < high[:, j, None])
        whole = torch.where(inside, probs, 0.0).sum(-1)
        value = torch.where(strong[:, j] > STRONG, whole, strong[:, j])
        got = got.scatter(1, columns[:, j, None], value[:, None])
    end = fused.end.exp()
    total = (got.sum(-1) + end).log()
    logprobs = torch.where(flat[:, None], got.log() - total[:, None], fused.logprobs)
    return replace(fused, logprobs=logprobs, end=torch.where(flat, fused.end - total, fused.end))


def of_main(main: MemberDistribution) -> FusedDistribution:
    """Main's own distribution over its keys and END, as something to choose from."""
    space = TokenSpace("union", main.logprobs.shape[-1])
    return FusedDistribution(space, main.logprobs, main.end)


def mixed(
    main: MemberDistribution, fused: FusedDistribution, open_rows: Tensor
) -> FusedDistribution:
    """What the members say together in some rows, main's own distribution in the others.

    Args:
        main: Main's, N rows.
        fused: Of all N rows, or of the open ones.
        open_rows: [N] bool, or [n] which rows the n of ``fused`` are.

    Returns:
        N rows over union keys; rows keep their values bit by bit.
    """
    keys, own = fused.logprobs, main.logprobs
    if fused.keys is not None:  # column j becomes key j
        size = fused.space.width
        places = torch.where(fused.keys < 0, size, fused.keys)
        keys = keys.new_full((len(keys), size + 1), -torch.inf).scatter(1, places, keys)[:, :size]
    width = max(keys.shape[-1], own.shape[-1])
    keys = torch.nn.functional.pad(keys, (0, width - keys.shape[-1]), value=-torch.inf)
    own = torch.nn.functional.pad(own, (0, width - own.shape[-1]), value=-torch.inf)
    if open_rows.dtype == torch.bool:
        logprobs = torch.where(open_rows[:, None], keys, own)
        end = torch.where(open_rows, fused.end, main.end)
    else:
        logprobs = own.index_copy(0, open_rows, keys)
        end = main.end.index_copy(0, open_rows, fused.end)
    return FusedDistribution(TokenSpace("union", width), logprobs, end)


# the rules, asked of some rows


class Gatekeeper:
    """A gate over some voices' keys."""

    def __init__(
        self, gate: str | Mapping[str, Any], voices: Sequence[Voice], keys: Sequence[bytes | None]
    ) -> None:
        """Read the gate.

        Args:
            gate: As in a request.
            voices: Main first.
            keys: Bytes of every union key, in an order of their own (``vocab/union_keys.py``).
        """
        self.gate = read_gate(gate)
        self._voices, self._keys = voices, keys

    def check(self, weigh_boundaries: bool) -> None:
        """Refuse a gate that these members cannot have.

        Args:
            weigh_boundaries: Whether it is known where the members' tokens end.

        Raises:
            ConfigError: The gate asks for that, and it is not.
        """
        unknown = [v for v in self._voices[1:] if not v.verbatim and v.trie is None]
        others = [repr(v.member.name) for v in unknown]
        if self.gate.name == "safe" and others and not weigh_boundaries:
            raise ConfigError(
                "gate='safe' fuses where a token of every member ends; with "
                f"open_boundaries='vote' nobody weighs where those of {', '.join(others)} do. "
                "Use open_boundaries='discount' or another gate"
            )

    def refuse_bytes(self) -> None:
        """Refuse a gate where a text is walked byte by byte: there are no steps of main's."""
        if self.gate.name != "always":
            raise ConfigError(
                f"a score over bytes has no tokens of main's at which gate={self.gate.name!r} "
                "could open or shut; score with gate='always'"
            )

    def codes(
        self,
        distributions: Sequence[MemberDistribution],
        weights: Tensor,
        boundary: Sequence[Tensor | None],
    ) -> Tensor | None:
        """Where main speaks alone, and why.

        Args:
            distributions: One a voice, main first.
            weights: [N, voices], those that the fusion would get.
            boundary: c_i [N] a voice, None where it is 1.

        Returns:
            [N] float32, numbers of :data:`REASONS`; None: nowhere, and nothing was computed.
        """
        main = distributions[0]
        if self.gate.name == "always":
            return None
        if self.gate.name == "threshold":
            return sure(main, self.gate.below).float()
        rank, after = self._ordered.ranges(weights.device)
        ranks = [self._ordered.ranks_of(v.keys) for v in self._voices if v.keys is not None]
        together = agreement(distributions, weights, ranks, rank, after)
        others = weights[:, 1:].sum(-1) > 0  # else nobody is there to agree
        codes = torch.where(others & (together > self.gate.consensus), float(CONSENSUS), OPEN)
        return torch.where(apart(distributions, boundary, main.end), float(BOUNDARY), codes)

    def sharpened(self, fused: FusedDistribution, weights: Tensor) -> FusedDistribution:
        """Sharpen flat rows in which more than one voice speaks, where the gate does that.

        Args:
            fused: What the members say together, n rows.
            weights: [n, voices] behind the gate.
        """
        if not self.gate.sharpens:
            return fused
        return sharpened(
            fused, (weights > 0).sum(-1) > 1, *self._ordered.ranges(fused.logprobs.device)
        )

    def scored(
        self, scores: Tensor, fused: FusedDistribution, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, FusedDistribution]:
        """Sharpen a fusion's scores as its distribution is sharpened.

        Args:
            scores: [N] log-probability of one union key a row, completed by the fusion.
            fused: What the members say together.
            weights: [N, voices] behind the gate.
            targets: [N] union keys.

        Returns:
            The scores and the distribution; a key that the distribution lacks keeps its score.
        """
        told = self.sharpened(fused, weights)
        if told is fused:
            return scores, fused
        gained = told.logprob_of(targets) - fused.logprob_of(targets)
        return scores + torch.where(gained.isfinite(), gained, 0.0), told

    @property
    def _ordered(self) -> Ordered:
        assert isinstance(self._keys, Ordered)  # the alignment made them so
        return self._keys


def weights_behind(weights: Tensor, shut: Tensor | None) -> Tensor:
    """All weight on main where a gate is shut.

    Args:
        weights: [N, voices].
        shut: [N] why main speaks alone, :data:`OPEN`: it does not; None: nowhere.
    """
    if shut is None:
        return weights
    only = torch.cat([torch.ones_like(weights[:, :1]), torch.zeros_like(weights[:, 1:])], -1)
    return torch.where(shut[:, None] == OPEN, weights, only)


def rows_of(distribution: MemberDistribution, rows: Tensor | slice) -> MemberDistribution:
    """Some rows of a distribution.

    Args:
        distribution: The distribution.
        rows: Numbers of the rows, on any device, or a range of them.
    """
    own: dict[str, Any] = {
        name: value[rows.to(value.device) if torch.is_tensor(rows) else rows]
        for name, value in vars(distribution).items()
        if torch.is_tensor(value)
    }
    return replace(distribution, **own)
