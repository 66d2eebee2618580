"""What one member reads when another's key is chosen: ids for every union key, computed once.

Where a key cannot merge with what stands before it (``opens``), a decode step appends its ids
without tokenizing anything. Everywhere else :meth:`Vocabulary.extend` decides, and it is the twin
that the fast path must always equal.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.vocab.alignment import Aligned
from langchain_ensemble.vocab.vocabulary import Vocabulary

Remember = Callable[[Mapping[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]

_BEFORE = [chr(c) for c in range(0x21, 0x7F)]


class PairTable:
    """A member's ids for every union key that is whole UTF-8, in compressed rows.

    Attributes:
        offsets: [U + 1] int32; key ``u`` has the ids ``ids[offsets[u]:offsets[u + 1]]``.
        ids: [N] int32.
        opens: [U] bool, True where the key begins in ASCII and cannot merge with what precedes it
            when that ends in a printable ASCII character other than a space.
    """

    def __init__(
        self, member: Vocabulary, texts: Sequence[str], tensors: Mapping[str, Tensor]
    ) -> None:
        """Keep what was spelled.

        Args:
            member: The vocabulary that reads.
            texts: The text of every union key, empty where it is no whole UTF-8.
            tensors: What :func:`spell` gives for them.
        """
        self._member = member
        self._texts = texts
        self.offsets: Tensor = tensors["offsets"]
        self.ids: Tensor = tensors["ids"]
        self.opens: Tensor = tensors["opens"]
        # Arrays of the standard library: an element of a tensor costs a microsecond.
        self._offsets = array("i", self.offsets.tolist())
        self._ids = array("i", self.ids.tolist())
        self._ends = array("i", tensors["ends"].tolist())
        self._opens = self.opens.tolist()

    def append(
        self, ids: Sequence[int], ends: Sequence[int], text: str, key: int
    ) -> tuple[int, list[int], list[int]]:
        """What :meth:`Vocabulary.extend` gives when a key's text is appended.

        Args:
            ids: ``encode(text).ids``.
            ends: ``encode(text).ends``.
            text: The text so far.
            key: A union key that is whole UTF-8.

        Returns:
            ``(kept, new_ids, new_ends)`` as :meth:`Vocabulary.extend` does.
        """
        if self._opens[key] and ends and text and "!" <= text[-1] <= "~":
            start, end = self._offsets[key], self._offsets[key + 1]
            new_ends = [ends[-1] + offset for offset in self._ends[start:end]]
            return len(ids), self._ids[start:end].tolist(), new_ends
        return self._member.extend(ids, ends, text, self._texts[key])


def spell(texts: Sequence[str], member: Vocabulary) -> dict[str, Tensor]:
    """Spell texts in a member's ids.

    Args:
        texts: The texts.
        member: The vocabulary that reads.

    Returns:
        ``offsets`` [U + 1], ``ids`` [N], ``ends`` [N] int32 and ``opens`` [U] bool, as in
        :class:`PairTable`; ``ends`` are byte offsets within each text.
    """
    encodings = member.encode_all(texts)
    opens_with = {
        first: first.isascii() and all(member.border(a, first) for a in _BEFORE)
        for first in dict.fromkeys(text[:1] for text in texts if text)
    }
    opens = [
        bool(text) and encoding.unknown == 0 and opens_with[text[0]]
        for text, encoding in zip(texts, encodings, strict=True)
    ]
    offsets = array("i", accumulate((len(e.ids) for e in encodings), initial=0))
    return {
        "offsets": torch.tensor(offsets, dtype=torch.int32),
        "ids": torch.tensor([i for e in encodings for i in e.ids], dtype=torch.int32),
        "ends": torch.tensor([end for e in encodings for end in e.ends], dtype=torch.int32),
        "opens": torch.tensor(opens, dtype=torch.bool),
    }


def pair_table(aligned: Aligned, member: Vocabulary, remember: Remember | None = None) -> PairTable:
    """Spell every union key in one member's ids, once for these keys and this tokenizer.

    Args:
        aligned: The union.
        member: The vocabulary that reads.
        remember: The disk cache's ``remember(key, build)``; None builds in memory.

    Returns:
        The table.
    """
    texts = [_text(key) for key in aligned.key_bytes]
    if remember is None:
        return PairTable(member, texts, spell(texts, member))
    lengths = ",".join(str(len(text)) for text in texts)  # no character is left to stand between
    keys = hashlib.sha256((lengths + "".join(texts)).encode()).hexdigest()
    key = {"part": "pair table", "format": 2, "keys": keys, "member": member.content_hash}
    return PairTable(member, texts, remember(key, lambda: spell(texts, member)))


def _text(key: bytes | None) -> str:
    """A key's text, empty where it is no whole UTF-8."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""
