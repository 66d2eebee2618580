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
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from langchain_ensemble.decoding.gate_rules import agreement, apart, sharpened, sure
from langchain_ensemble.decoding.protocols import Voice
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import FusedDistribution, MemberDistribution, MemberKeys

OPEN, SURE, BOUNDARY, CONSENSUS = range(4)
SLACK = 1e-6
"""One of two equal members is sure, the other of something else: that is exactly one half, and
rounding must not take it for consensus."""

REASONS = (None, "sure", "boundary", "consensus")
"""Why main spoke alone, by the number that stands for it on the device."""


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
        limit = self.gate.consensus + SLACK
        codes = torch.where(others & (together > limit), float(CONSENSUS), OPEN)
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
