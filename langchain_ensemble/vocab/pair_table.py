"""What one member reads when another's key is chosen: ids for every union key, computed once.

Where a key cannot merge with what stands before it (``opens``), a decode step appends its ids
without tokenizing anything. Everywhere else :meth:`Vocabulary.extend` decides, and it is the twin
that the fast path must always equal.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        opens: [U] bool, True where the key cannot merge with what precedes it when that ends in a
            printable ASCII character other than a space.
    """

    def __init__(self, aligned: Aligned, member: Vocabulary) -> None:
        """Spell every key in the member's ids.

        Args:
            aligned: The union.
            member: The vocabulary that reads.
        """
        self._member = member
        self._texts = [_text(key) for key in aligned.key_bytes]
        rows: list[tuple[list[int], list[int]]] = []
        whole: list[bool] = []
        opens_with: dict[str, bool] = {}
        for text, encoding in zip(self._texts, member.encode_all(self._texts), strict=True):
            ids, ends, unknown = encoding
            rows.append((ids, ends))
            whole.append(bool(text) and unknown == 0)
            if text and text[0] not in opens_with:
                opens_with[text[0]] = all(member.border(a, text[0]) for a in _BEFORE)
        self._rows = rows
        self._opens = [
            ok and opens_with[text[0]] for ok, text in zip(whole, self._texts, strict=True)
        ]
        lengths = torch.tensor([0] + [len(ids) for ids, _ in rows])
        self.offsets: Tensor = lengths.cumsum(0).int()
        self.ids: Tensor = torch.tensor([i for ids, _ in rows for i in ids], dtype=torch.int32)
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
            new_ids, new_ends = self._rows[key]
            return len(ids), list(new_ids), [ends[-1] + end for end in new_ends]
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
