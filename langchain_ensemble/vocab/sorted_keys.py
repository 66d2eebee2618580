"""A vocabulary's keys in byte order: which of them start with given bytes is then one range.

Open boundaries (SEMANTICS rule 14) sum a row's probability over such ranges with prefix sums.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from langchain_ensemble.vocab.vocabulary import Vocabulary


class SortedKeys:
    """The keys of one vocabulary, sorted by their bytes.

    Attributes:
        order: [K] int64, the representative id of each key in byte order.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Sort the keys.

        Args:
            vocabulary: The vocabulary.
        """
        self._keys = sorted(vocabulary.key_of)
        self.order: Tensor = torch.tensor(
            [vocabulary.key_of[key] for key in self._keys], dtype=torch.int64
        )

    def range(self, prefix: bytes) -> tuple[int, int]:
        """The half-open range of positions in ``order`` whose keys start with a prefix.

        Args:
            prefix: Any bytes; b"" is the start of every key.

        Returns:
            ``(start, end)``; equal where no key starts so.
        """
        start = bisect_left(self._keys, prefix)
        beyond = prefix.rstrip(b"\xff")  # the next byte string that does not start with prefix
        if not beyond:
            return start, len(self._keys)
        after = beyond[:-1] + bytes([beyond[-1] + 1])
        return start, bisect_left(self._keys, after, start)

    def position(self, key: bytes) -> int | None:
        """The position of a key in ``order``, None where it is no key.

        Args:
            key: Any bytes.
        """
        at = bisect_left(self._keys, key)
        return at if at < len(self._keys) and self._keys[at] == key else None
