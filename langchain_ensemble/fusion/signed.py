"""Members with roles: what contrastive, proxy and context-aware fusions share.

A mix is a function of log-probabilities over main's keys with END as one more key; log-probs in
place of logits change a row by a constant, which the softmax takes away. It never makes possible
what main excludes. Where a member with a role has nothing to say in a row (an incomplete character,
a grammar that leaves it no mass), the mix has no meaning, and main alone decides that row.

Keys can only be subtracted where they are the same. Members of one vocabulary are mixed key by key;
others byte by byte, over 256 bytes and END, along the paths of their tokens (``bytes_walk.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from langchain_ensemble.errors import VocabularyError
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    MemberKeys,
    Needs,
)
from langchain_ensemble.fusion.bytes_walk import Walker
from langchain_ensemble.fusion.combine import normalised
from langchain_ensemble.fusion.voices import dense, finite_score
from langchain_ensemble.roles import places_of


@dataclass(frozen=True)
class RoleFusion(ABC):
    """A fusion whose settings name a member for each of its roles."""

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """Every logit: what is not listed cannot be compared."""
        return Needs(logprobs="dense")

    def settings(self) -> dict[str, Any]:
        """Roles and settings as JSON, without the name."""
        return asdict(self)

    def needs_of(self, alignment: Alignment) -> Needs:
        """What these members must give: their paths too, where they have not one vocabulary."""
        main, *others = alignment.members
        one = all(lacking(main, other) == (0, 0) for other in others)
        return Needs(logprobs="dense", paths=not one)

    def prepare(self, context: FusionContext) -> SignedFuser | SignedBytesFuser:
        """Find the members; nothing is expensive here."""
        return (
            SignedFuser(self, context) if context.tries is None else SignedBytesFuser(self, context)
        )

    @abstractmethod
    def mix(self, *said: Tensor) -> Tensor:
        """Scores of every key, up to a constant a row.

        Args:
            *said: [..., S] log-probabilities, one a role, main's first.

        Returns:
            [..., S]; -inf where main's are.
        """


def above(base: Tensor, other: Tensor) -> Tensor:
    """How much surer one member is of every key than another: ``base - other``.

    Args:
        base: [..., S] log-probabilities.
        other: [..., S].

    Returns:
        [..., S], finite but for NaN. What one of them cannot say at all (a mask, a byte that its
        tokenizer lacks) makes no difference: it is no measure of how much surer the other is.
    """
    mute = (base == -torch.inf) | (other == -torch.inf)
    return torch.where(mute, 0.0, base - other)


class SignedFuser:
    """A fusion with roles, made ready for one ensemble.

    Attributes:
        together: A row in which not every member has a voice is main's alone.
    """

    together = True

    def __init__(self, fusion: RoleFusion, context: FusionContext) -> None:
        """Find out who has which role.

        Args:
            fusion: The fusion.
            context: What it is prepared with.

        Raises:
            ConfigError: A role without a member, or a member without a role.
            VocabularyError: The members have not one vocabulary.
        """
        self._mix, self._places = fusion.mix, _places(fusion, context)
        self._alignment = context.alignment
        main, *others = context.alignment.members
        self._ids = [_ids_of_main(fusion.name, main, other) for other in others]

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Mix one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`.

        A member of weight 0 is silent; how much above 0 a weight is, is not read.
        """
        run = dense(distributions, self._alignment)
        said = [torch.cat([run[0].logprobs, run[0].end[:, None]], -1)]  # [N, V + 1] each
        for one, ids in zip(run[1:], self._ids, strict=True):
            keys = one.logprobs if ids is None else _told(one.logprobs, ids)
            said.append(torch.cat([keys, one.end[:, None]], -1))
        speaks = (weights > 0).all(-1)  # [N]
        for one in run:
            if one.abstain is not None:
                speaks = speaks & ~one.abstain.to(speaks.device)
        main = said[0]
        mixed = torch.log_softmax(self._mix(*(said[place] for place in self._places)), -1)
        fused = torch.where(speaks[:, None], mixed, main)
        return FusedDistribution(self._alignment.space, fused[:, :-1], fused[:, -1])

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)


class SignedBytesFuser(Walker):
    """A fusion with roles over bytes, for members of different vocabularies.

    Attributes:
        together: A row in which not every member has a voice is main's alone.
    """

    together = True

    def __init__(self, fusion: RoleFusion, context: FusionContext) -> None:
        """Find out who has which role; takes the trees of keys.

        Args:
            fusion: The fusion.
            context: What it is prepared with.

        Raises:
            ConfigError: A role without a member, or a member without a role.
        """
        super().__init__(context)
        self._mix, self._places = fusion.mix, _places(fusion, context)

    def over_bytes(self, logprobs: Tensor, weights: Tensor) -> Tensor:
        """What the members say of a byte or END, mixed; main alone where one of them is silent.

        Args:
            logprobs: [M, N, 257].
            weights: [N, M]; 0 is silent.

        Returns:
            [N, 257], normalised; -inf where main's row is.
        """
        scores = self._mix(*(logprobs[place] for place in self._places))
        speaks = (weights > 0).all(-1, keepdim=True)
        return normalised(torch.where(speaks, scores, logprobs[0]))


def _places(fusion: RoleFusion, context: FusionContext) -> tuple[int, ...]:
    """Who has which role."""
    names = [keys.name for keys in context.alignment.members]
    return places_of(fusion.name, fusion.settings(), names)


def _told(logprobs: Tensor, ids: Tensor) -> Tensor:
    """A member's log-probabilities in main's ids, [N, V]."""
    return torch.where(ids >= 0, logprobs[:, ids.clamp_min(0)], -torch.inf)


def _ids_of_main(fusion: str, main: MemberKeys, other: MemberKeys) -> Tensor | None:
    """The member's id of each of main's keys, [V] with -1 where there is none; None: the same id.

    Raises:
        VocabularyError: One of the two has a key that the other lacks, or only one can end.
    """
    missing, beyond = lacking(main, other)
    if missing or beyond:
        raise VocabularyError(
            f"fusion={fusion!r} compares members key by key, but {missing} of "
            f"{int(main.own.sum())} tokens of main {main.name!r} are unknown to member "
            f"{other.name!r}, and {beyond} of its {int(other.own.sum())} to main; prepare it as "
            "needs_of(alignment) says, with paths, or take members of one vocabulary"
        )
    if len(main.end_ids) and not len(other.end_ids):
        raise VocabularyError(
            f"fusion={fusion!r} compares members key by key, but member {other.name!r} has no "
            "token that ends a text; take another member in its place"
        )
    ids = torch.where(main.own, other.from_union[: main.width], -1)
    places = torch.arange(main.width, device=ids.device)
    same = main.width == other.width and torch.equal(ids, torch.where(main.own, places, -1))
    return None if same else ids


def lacking(main: MemberKeys, other: MemberKeys) -> tuple[int, int]:
    """How many keys one of two members has and the other has not.

    Args:
        main: Main's keys.
        other: Another member's.

    Returns:
        Main's that the other lacks, and the other's that main lacks.
    """
    missing = main.own & (other.from_union[: main.width] < 0)
    beyond = other.to_union[other.own] >= main.width
    return int(missing.sum()), int(beyond.sum())
