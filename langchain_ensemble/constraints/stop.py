"""Stop strings, matched on the answer's bytes, across tokens, never leaked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class StopScanner:
    """Looks for the first stop string in a growing answer.

    The first match is the one that is complete first, so the result does not depend on how the
    answer was cut into tokens. The scanner has no state but the stop strings: positions are given.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Keep the stop strings.

        Args:
            stops: Non-empty texts.
        """
        self._stops = [(text, text.encode()) for text in dict.fromkeys(stops)]
        self._longest = max((len(data) for _, data in self._stops), default=0)

    def find(self, answer: bytes | bytearray, scanned: int) -> tuple[int, str] | None:
        """Find the first match.

        Args:
            answer: All bytes of the answer.
            scanned: How many of them were searched before without a match.

        Returns:
            Where the match starts and the stop string, or None.
        """
        return next(self.matches(answer, scanned), None)

    def matches(self, answer: bytes | bytearray, scanned: int) -> Iterator[tuple[int, str]]:
        """Find every match that ends in bytes not searched before, in the order of their ends.

        Args:
            answer: All bytes of the answer.
            scanned: How many of them were searched before.

        Returns:
            Where each match starts and the stop string.
        """
        found: list[tuple[int, int, str]] = []  # (end, start, text)
        for text, data in self._stops:
            at = answer.find(data, max(0, scanned - len(data) + 1))
            while at >= 0:
                found.append((at + len(data), at, text))
                at = answer.find(data, at + 1)
        return ((at, text) for _, at, text in sorted(found))

    def held(self, answer: bytes | bytearray) -> int:
        """Count the last bytes that may be the beginning of a stop string.

        Args:
            answer: All bytes of the answer, without a complete match.

        Returns:
            How many bytes must not be given to the user yet.
        """
        for length in range(min(self._longest - 1, len(answer)), 0, -1):
            tail = bytes(answer[-length:])
            if any(data.startswith(tail) for _, data in self._stops):
                return length
        return 0
