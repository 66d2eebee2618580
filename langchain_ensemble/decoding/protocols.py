"""What decoding needs of a vocabulary and of a voice; nothing about how they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from langchain_ensemble.fusion.base import (
    FusedDistribution,
    Fuser,
    MemberDistribution,
    MemberKeys,
    Told,
    Trie,
    ceiling,
)
from langchain_ensemble.members.base import LoadedMember, Processor


class EncodingLike(Protocol):
    """Ids of a text and where their bytes end."""

    @property
    def ids(self) -> list[int]:
        """Ids, none of them a control id."""

    @property
    def ends(self) -> list[int]:
        """Byte offset in the text where each id's bytes end."""

    @property
    def unknown(self) -> int:
        """Characters that the vocabulary cannot spell; they became the unk id."""


class VocabularyLike(Protocol):
    """The part of a vocabulary that decoding uses."""

    @property
    def token_bytes(self) -> Sequence[bytes | None]:
        """Bytes of every id up to the logits width."""

    @property
    def token_roles(self) -> Sequence[object]:
        """Role of every id, None for text."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a turn."""

    @property
    def unk_id(self) -> int | None:
        """The id of what cannot be spelled, if there is one."""

    @property
    def dummy_prefix(self) -> bool:
        """Whether the tokenizer puts a space before a text."""

    def encode(self, text: str) -> EncodingLike:
        """Canonical ids of an answer."""

    def extend(
        self, ids: Sequence[int], ends: Sequence[int], text: str, added: str
    ) -> tuple[int, list[int], list[int]]:
        """(kept, new ids, new ends): canonical ids of ``text + added`` given those of ``text``."""


class PairTableLike(Protocol):
    """What a voice reads for every union key, computed once."""

    def append(
        self, ids: Sequence[int], ends: Sequence[int], text: str, key: int
    ) -> tuple[int, list[int], list[int]]:
        """What ``extend`` gives when a key's text is appended."""


class SortedKeysLike(Protocol):
    """A vocabulary's keys in byte order."""

    order: Tensor
    """[K] representative ids by their bytes."""

    def range(self, prefix: bytes) -> tuple[int, int]:
        """Half-open range of the keys that start with some bytes."""

    def position(self, key: bytes) -> int | None:
        """Position of one key."""


class ByteTrieLike(SortedKeysLike, Protocol):
    """The same keys as a tree of bytes, whose nodes are columns."""

    trie: Trie
    """The tree as index tensors, on the voice's device."""

    def column(self, prefix: bytes) -> int:
        """The node below which the keys stand that start with some bytes."""

    def following(self, prefix: bytes) -> tuple[Tensor, Tensor]:
        """The bytes that can follow within a key, and the nodes they lead to; on the host."""


@dataclass(frozen=True)
class Voice:
    """One member as the loop sees it.

    Attributes:
        member: Weights and view.
        vocabulary: Its vocabulary.
        keys: Its keys in the union; None when the ensemble has one voice only.
        allowed: [8, V_i] bool: from each UTF-8 state, the ids that may come next; None as above.
        sorted_keys: Its keys in byte order, where its boundaries have to be weighed.
        pairs: Its ids for every union key; None where it takes main's ids.
        verbatim: Whether it takes main's ids as they are (main itself, and equal tokenizers).
        turns: Whether it answers in a conversation: alone it ends at every END of its vocabulary,
            its template's end of a turn too, which configs leave out at times.
        trie: ``sorted_keys`` as a tree, where the fusion hears members byte by byte.
    """

    member: LoadedMember
    vocabulary: VocabularyLike
    keys: MemberKeys | None
    allowed: Tensor | None
    sorted_keys: SortedKeysLike | None
    pairs: PairTableLike | None
    verbatim: bool
    turns: bool = False
    trie: ByteTrieLike | None = None

    def alone(self) -> Voice:
        """The member as the only voice: it takes its own ids one by one."""
        return replace(self, verbatim=True, trie=None)

    @cached_property
    def ceilings(self) -> Tensor:
        """[8, V_i] float32: inf where an id may come in a UTF-8 state, else -inf."""
        assert self.keys is not None  # there is more than one voice
        return ceiling(self.keys, self.allowed)


class Sampling(NamedTuple):
    """Sampling processors of one request, made by the members' side from transformers' own.

    Attributes:
        penalty: Repetition penalty, or None.
        filters: Temperature, top-k, top-p, min-p in transformers' order; empty when greedy.
    """

    penalty: Processor | None
    filters: tuple[Processor, ...]


Warn = Callable[[str], None]


@runtime_checkable
class Teller(Fuser, Protocol):
    """A fuser that says how it heard each member; its fusion says ``tells = True``."""

    def telling(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> tuple[FusedDistribution, Told]:
        """What a call gives, and every member's distribution in main's keys."""
