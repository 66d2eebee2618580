"""What one member reads when another's key is chosen: ids for every union key, computed once.

Where a key cannot merge with what stands before it (``opens``), a decode step appends its ids
without tokenizing anything. Everywhere else :meth:`Vocabulary.extend` decides, and it is the twin
that the fast path must always equal.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from langchain_ensemble.vocab.alignment import Aligned
from langchain_ensemble.vocab.vocabulary import Vocabulary

_BEFORE = [chr(c) for c in range(0x21, 0x7F)]


class PairTable:
    """A member's ids for every union key that is whole UTF-8, in compressed rows.

    Attributes:
        offsets: [U + 1] int32; key ``u`` has the ids ``ids[offsets[u]:offsets[u + 1]]``.
        ids: [N] int32.
        opens: [U] bool, True where the key begins in ASCII and cannot merge with what precedes it
            when that ends in a printable ASCII character other than a space.
    """

    def __init__(self, aligned: Aligned, member: Vocabulary) -> None:
        """Spell every key in the member's ids.

        Args:
            aligned: The union.
            member: The vocabulary that reads.
        """
        self._member = member
        self._texts = [_text(key) for key in aligned.key_bytes]
        encodings = member.encode_all(self._texts)
        opens_with = {
            first: first.isascii() and all(member.border(a, first) for a in _BEFORE)
            for first in dict.fromkeys(text[:1] for text in self._texts if text)
        }
        self._opens = [
            bool(text) and encoding.unknown == 0 and opens_with[text[0]]
            for text, encoding in zip(self._texts, encodings, strict=True)
        ]
        self._ids = array("i", (i for encoding in encodings for i in encoding.ids))
        self._ends = array("i", (end for encoding in encodings for end in encoding.ends))
        self._offsets = array("i", accumulate((len(e.ids) for e in encodings), initial=0))
        self.offsets: Tensor = torch.tensor(self._offsets, dtype=torch.int32)
        self.ids: Tensor = torch.tensor(self._ids, dtype=torch.int32)
        self.opens: Tensor = torch.tensor(self._opens, dtype=torch.bool)

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


def pair_table(aligned: Aligned, member: Vocabulary) -> PairTable:
    """Spell every union key in one member's ids.

    Args:
        aligned: The union.
        member: The vocabulary that reads.

    Returns:
        The table.
    """
    return PairTable(aligned, member)


def _text(key: bytes | None) -> str:
    """A key's text, empty where it is no whole UTF-8."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""
