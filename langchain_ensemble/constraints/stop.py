"""Stop strings, matched on the answer's bytes, across tokens, never leaked."""

from __future__ import annotations

from collections.abc import Sequence


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
        start = max(0, scanned - self._longest + 1)
        best: tuple[int, int, str] | None = None  # (end, start, text)
        for text, data in self._stops:
            at = answer.find(data, start)
            if at >= 0 and (best is None or (at + len(data), at) < best[:2]):
                best = (at + len(data), at, text)
        return None if best is None else (best[1], best[2])

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
