"""The members' vocabularies over one union: strings become index tensors here, once.

Tokens of two vocabularies are the same iff their bytes are the same. The reference codes compare
strings (and lose punctuation, newlines and nearly every non-ASCII token between families) and put
them through a ``set`` (so that the order changes from run to run); here the order is main's ids,
then bytes. Control ids have no key; end ids are pooled by the fusions into one END.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.fusion.base import Alignment, MemberKeys
from langchain_ensemble.vocab.union_keys import UnionKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary


class Aligned(NamedTuple):
    """An alignment and the bytes that its union keys stand for.

    Attributes:
        alignment: Index tensors, all that a fusion sees.
        key_bytes: Bytes of each union key; None for main ids that are no key (control ids, and ids
            for whose bytes another id stands).
        key_of: Bytes -> union key.
    """

    alignment: Alignment
    key_bytes: UnionKeys
    key_of: dict[bytes, int]


def align(
    vocabularies: Sequence[tuple[str, Vocabulary]], device: torch.device | str = "cpu"
) -> Aligned:
    """Put members' vocabularies over one union of keys.

    Args:
        vocabularies: Names and vocabularies, main first.
        device: Where the index tensors live.

    Returns:
        The alignment and the bytes of its keys.

    Raises:
        ConfigError: No vocabulary was given.
    """
    if not vocabularies:
        raise ConfigError("an alignment needs at least one vocabulary; 0 were given")
    main = vocabularies[0][1]
    key_bytes = UnionKeys([None] * main.width)
    for key, main_id in main.key_of.items():
        key_bytes[main_id] = key
    others = {key: None for _, vocabulary in vocabularies[1:] for key in vocabulary.key_of}
    key_bytes += sorted(key for key in others if key not in main.key_of)
    key_of = {key: u for u, key in enumerate(key_bytes) if key is not None}
    members = tuple(
        _member_keys(name, vocabulary, key_bytes, key_of, device)
        for name, vocabulary in vocabularies
    )
    common = torch.stack([keys.from_union[: main.width] >= 0 for keys in members]).all(0)
    alignment = Alignment(
        members, len(key_bytes), common.nonzero()[:, 0], _hash(members, len(key_bytes))
    )
    return Aligned(alignment, key_bytes, key_of)


def check_common(aligned: Aligned, minimum: int, fusion: str) -> None:
    """Refuse members that share too few tokens for a fusion.

    Args:
        aligned: The members' alignment.
        minimum: How many common tokens the fusion needs.
        fusion: Its name.

    Raises:
        VocabularyError: They share fewer; the message names the members and both numbers.
    """
    shared = len(aligned.alignment.common)
    if shared >= minimum:
        return
    names = [repr(member.name) for member in aligned.alignment.members]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    raise VocabularyError(
        f"members {listed} share {shared} common tokens; fusion={fusion!r} needs at least "
        f"{minimum}. Use fusion='unite', or pass anchors=."
    )


def _member_keys(
    name: str,
    vocabulary: Vocabulary,
    key_bytes: list[bytes | None],
    key_of: dict[bytes, int],
    device: torch.device | str,
) -> MemberKeys:
    own = vocabulary.key_of
    to_union = [-1] * vocabulary.width
    for token_id, representative in enumerate(vocabulary.representative):
        if representative >= 0:
            key = vocabulary.token_bytes[token_id]
            to_union[token_id] = -1 if key is None else key_of[key]
    from_union = [-1 if key is None else own.get(key, -1) for key in key_bytes]
    longest = [
        found if found >= 0 or key is None else _longest_prefix(key, own)
        for key, found in zip(key_bytes, from_union, strict=True)
    ]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return MemberKeys(
        name,
        vocabulary.width,
        tensor(vocabulary.representative),
        tensor(to_union),
        tensor(from_union),
        tensor(longest),
        tensor(vocabulary.end_ids),
        torch.tensor(vocabulary.byte_fallback, dtype=torch.bool, device=device),
    )


def _longest_prefix(key: bytes, own: dict[bytes, int]) -> int:
    """The id of the longest proper prefix of a key, -1 where there is none."""
    for length in range(len(key) - 1, 0, -1):
        found = own.get(key[:length])
        if found is not None:
            return found
    return -1


def _hash(members: Sequence[MemberKeys], union_size: int) -> str:
    found = hashlib.sha256(str(union_size).encode())
    for member in members:
        found.update(f"|{member.name}|{member.width}|".encode())
        for tensor in (
            member.representative,
            member.to_union,
            member.from_union,
            member.longest_prefix,
            member.end_ids,
            member.byte_fallback,
        ):
            found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()
