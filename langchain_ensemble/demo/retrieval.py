"""Embeddings for the demo: hashed words, so that nothing is downloaded. A toy, as the members are.

Words that stand in many texts say little; without a collection to count in, short words count less
and the shortest not at all.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from langchain_core.embeddings import Embeddings

WIDTH = 512
"""Length of a vector; two of a profile's few dozen words rarely meet in one place."""


class HashedWords(Embeddings):
    """A text is the set of its words, each hashed to a place of the vector. Knows no synonyms."""

    def embed_query(self, text: str) -> list[float]:
        """Embed one text.

        Args:
            text: Any text.

        Returns:
            A vector of length 1, or of zeros where there is no word of three letters.
        """
        vector = [0.0] * WIDTH
        for word in set(re.findall(r"\w{3,}", text.lower())):
            vector[_place(word)] += len(word)
        length = sum(x * x for x in vector) ** 0.5
        return [x / length for x in vector] if length else vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed several texts.

        Args:
            texts: Any texts.

        Returns:
            A vector a text.
        """
        return [self.embed_query(text) for text in texts]


def _place(word: str) -> int:
    """The same place in every process, unlike ``hash``."""
    return int.from_bytes(blake2b(word.encode(), digest_size=4).digest()) % WIDTH
