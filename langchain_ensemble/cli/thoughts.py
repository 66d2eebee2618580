"""Members' thoughts on a terminal: dim, on stderr, one member after the other.

Members may think side by side, a token each in turn. The first one's thought is written as it
comes, the others' when the answer begins.
"""

from __future__ import annotations

from langchain_core.messages import AIMessageChunk

from langchain_ensemble.cli.console import stderr


class Thoughts:
    """Writes the thoughts of one answer."""

    def __init__(self, main: str) -> None:
        """Begin without a thought.

        Args:
            main: Name of the main member.
        """
        self._main = main
        self._console = stderr()
        self._kept: dict[str, str] = {}

    def add(self, chunk: AIMessageChunk) -> None:
        """Take the thoughts of a chunk, if it has some."""
        said = chunk.additional_kwargs
        if text := said.get("reasoning_content"):
            self._take(self._main, text)
        for member, text in said.get("thoughts", {}).items():
            self._take(member, text)

    def end(self) -> None:
        """Write what was kept back; the answer begins."""
        if not self._kept:
            return
        _, *others = self._kept
        for member in others:
            self._write(f"\n{member} thinks: {self._kept[member]}")
        self._write("\n")
        self._kept.clear()

    def _take(self, member: str, text: str) -> None:
        if not self._kept:
            self._write(f"{member} thinks: ")
        self._kept[member] = self._kept.get(member, "") + text
        if member == next(iter(self._kept)):
            self._write(text)

    def _write(self, text: str) -> None:
        self._console.print(text, style="dim", end="", soft_wrap=True)
