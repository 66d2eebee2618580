"""Random small ensembles for the laws of fusions: no tokenizer, no model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    member_distribution,
)
from langchain_ensemble.testing.alignments import toy_alignment


@dataclass(frozen=True)
class Case:
    """Members that are ready to be fused.

    Attributes:
        vocabularies: The bytes of each id, None for a control or unused id; one list a member.
        alignment: Their keys.
        embeddings: One [V_i, D] a member.
        distributions: One a member, N rows.
        weights: [N, M].
    """

    vocabularies: tuple[list[bytes | None], ...]
    alignment: Alignment
    embeddings: tuple[Tensor, ...]
    distributions: tuple[MemberDistribution, ...]
    weights: Tensor

    def context(self) -> FusionContext:
        """What a fusion is prepared with."""
        return FusionContext(
            alignment=self.alignment,
            embeddings=lambda i: self.embeddings[i],
            embedding_hashes=lambda i: f"case-{i}",
        )


def random_vocabulary(generator: torch.Generator, letters: bytes = b"abcd") -> list[bytes | None]:
    """Every letter, some longer strings, a spare id, an unused id and an end id, shuffled."""
    tokens: list[bytes | None] = [letters[i : i + 1] for i in range(len(letters))]
    for length in (2, 2, 2, 2, 3, 3, 3):
        picks = torch.randint(len(letters), (length,), generator=generator).tolist()
        word = bytes(letters[p] for p in picks)
        if word not in tokens:
            tokens.append(word)
    tokens += [tokens[0], None]
    order = torch.randperm(len(tokens), generator=generator).tolist()
    return [*(tokens[i] for i in order), None]  # the last id is END


def random_case(
    seed: int,
    members: int = 2,
    rows: int = 5,
    equal: bool = False,
    scale: float = 2.0,
    one_vocabulary: bool = False,
) -> Case:
    """A random ensemble.

    Args:
        seed: Seed.
        members: How many.
        rows: Positions.
        equal: Whether all members have the same vocabulary, embeddings and distributions.
        scale: Spread of the logits.
        one_vocabulary: Whether all members have the same vocabulary, and nothing else in common.

    Returns:
        The case; weights are random and above 0.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabularies = [random_vocabulary(generator) for _ in range(members)]
    if equal or one_vocabulary:
        vocabularies = [vocabularies[0]] * members
    alignment = toy_alignment(vocabularies)
    embeddings = [torch.randn(len(v), 8, generator=generator) for v in vocabularies]
    logits = [torch.randn(rows, len(v), generator=generator) * scale for v in vocabularies]
    if equal:
        embeddings, logits = [embeddings[0]] * members, [logits[0]] * members
    weights = torch.rand(rows, members, generator=generator) + 0.1
    return Case(
        tuple(vocabularies),
        alignment,
        tuple(embeddings),
        tuple(
            member_distribution(one, keys)
            for one, keys in zip(logits, alignment.members, strict=True)
        ),
        weights / weights.sum(-1, keepdim=True),
    )


def columns(fused: FusedDistribution, width: int) -> Tensor:
    """A fused distribution as dense probabilities, [N, width + 1], END last."""
    probs = fused.logprobs.exp()
    if fused.keys is None:
        wide = torch.nn.functional.pad(probs, (0, width - probs.shape[-1]))
    else:
        empty = probs.new_zeros(len(probs), width + 1)
        place = torch.where(fused.keys < 0, width, fused.keys)
        wide = empty.scatter_add(-1, place, probs)[:, :width]
    return torch.cat([wide, fused.end.exp()[:, None]], -1)


def take_rows(distribution: MemberDistribution, rows: slice) -> MemberDistribution:
    """Some rows of a distribution."""
    taken: dict[str, Any] = {
        name: value[rows] for name, value in vars(distribution).items() if torch.is_tensor(value)
    }
    return replace(distribution, **taken)
