"""What the parts of ``quality.py`` share: texts, result files, intervals."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_ensemble.choose.stats import Interval, bootstrap_ratio, paired_bootstrap

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
RESULTS = Path(__file__).parent / "results"
PIECE = 230
"""Bytes of a piece of text at most: the smallest context of the small models is 256 ids."""

GATES: dict[str, Any] = {
    "always": "always",
    "threshold": {"name": "threshold", "below": 0.5},
    "safe": "safe",
}


def pieces(name: str, count: int | None = None) -> list[str]:
    """Cut a text of one paragraph a line into pieces, at spaces, without newlines.

    Args:
        name: Path below ``text/``.
        count: So many pieces at most, spread evenly over the file; None: all.

    Returns:
        ASCII texts of at most :data:`PIECE` bytes; ends of paragraphs below 60 bytes are left out.
    """
    lines = (SHARED / "text" / name).read_text("utf-8", errors="ignore").splitlines()
    found: list[str] = []
    for line in lines:
        piece = ""
        for word in line.replace("<|endoftext|>", "").split():
            if len(f"{piece} {word}".encode()) > PIECE:
                found.append(piece.strip())
                piece = ""
            piece = f"{piece} {word}"
        found.append(piece.strip())
    found = [piece for piece in found if piece.isascii() and len(piece) >= 60]
    if count is None or count >= len(found):
        return found
    return [found[n * len(found) // count] for n in range(count)]


class Store:
    """A result file that is written after every row, so that a run that was broken off goes on."""

    def __init__(self, name: str, fixed: dict[str, Any]) -> None:
        """Read what is there.

        Args:
            name: Of the file, without ``.json``.
            fixed: What all rows were measured on; a file with anything else is begun anew.
        """
        self.path, self.fixed = RESULTS / f"{name}.json", json.loads(json.dumps(fixed))
        self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        held = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        return list(held["rows"]) if held.get("fixed") == self.fixed else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values, if it is there.

        Args:
            key: Names and values.

        Returns:
            The row.
        """
        self.rows = self._read()
        same = (row for row in self.rows if all(row.get(k) == v for k, v in key.items()))
        return next(same, None)

    def add(self, *rows: dict[str, Any]) -> None:
        """Add rows to what the file holds now: several processes may measure at once.

        Args:
            rows: Plain data.
        """
        RESULTS.mkdir(exist_ok=True)
        lock = os.open(RESULTS, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.rows = [*self._read(), *rows]
            lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.rows)
            whole = f'{{"fixed":{json.dumps(self.fixed)},\n"rows":[\n{lines}\n]}}\n'
            scratch = self.path.with_suffix(".part")
            scratch.write_text(whole, "utf-8")
            scratch.replace(self.path)
        finally:
            os.close(lock)


def saving(ours: Sequence[float], theirs: Sequence[float], sizes: Sequence[int]) -> Interval:
    """How many percent fewer bits ours needs, with a paired interval over pieces of text.

    Args:
        ours: Nats of each piece.
        theirs: Nats of each piece.
        sizes: Bytes of each piece.

    Returns:
        Percent; above 0: ours is better.
    """
    return Interval(*(100 * value for value in bootstrap_ratio(ours, theirs, sizes)))


def points(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """By how many percentage points ours is more often right, with a paired interval over items.

    Args:
        ours: 1 or 0 an item.
        theirs: 1 or 0 an item.

    Returns:
        Percentage points; above 0: ours is better.
    """
    return Interval(*(100 * value for value in paired_bootstrap(ours, theirs)))


def said(interval: Interval, digits: int = 1) -> str:
    """An estimate and its interval as text.

    Args:
        interval: The numbers.
        digits: Behind the point.

    Returns:
        ``"+4.0 [1.7, 5.4]"``.
    """
    mean, low, high = interval
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
