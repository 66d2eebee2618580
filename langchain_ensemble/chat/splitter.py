"""Where an answer's text ends and its tool calls begin."""

from __future__ import annotations

from langchain_ensemble.chat.tool_formats import CallReader
from langchain_ensemble.decoding.records import CallDelta


class Splitter:
    """Sends what comes before an opening to the text, and what follows it to a reader of calls."""

    def __init__(
        self,
        opening: str | None,
        reader: CallReader | None,
        *,
        inside: bool = False,
        first: bool = False,
    ) -> None:
        """Start.

        Args:
            opening: The text that opens a call; None: everything is text.
            reader: Reads what follows it; None where there is no opening.
            inside: Whether the opening was read already.
            first: Whether the opening counts at the start of the answer only.
        """
        self._opening, self._reader, self._inside = opening, reader, inside
        self._first = first
        self._back = ""  # may be the beginning of the opening

    def feed(self, text: str) -> tuple[str, list[CallDelta]]:
        """Read some more.

        Args:
            text: What was decoded.

        Returns:
            The text that belongs to the answer, and the fragments of calls.
        """
        if self._opening is None or self._reader is None:
            return text, []
        if self._inside:
            return "", self._reader.feed(text)
        text = self._back + text
        if self._first and text and not self._begins(text):
            self._opening, self._back = None, ""
            return text, []
        at = text.find(self._opening)
        if at >= 0:
            self._inside, self._back = True, ""
            return text[:at], self._reader.feed(text[at + len(self._opening) :])
        keep = next(
            n
            for n in range(min(len(self._opening) - 1, len(text)), -1, -1)
            if text.endswith(self._opening[:n])
        )
        self._back = text[len(text) - keep :]
        return text[: len(text) - keep], []

    def _begins(self, text: str) -> bool:
        """Whether an answer that begins so may begin with the opening."""
        opening = self._opening or ""
        return text.startswith(opening) or opening.startswith(text)

    def finish(self, complete: bool) -> tuple[str, list[CallDelta]]:
        """End.

        Args:
            complete: Whether the answer ended by itself.

        Returns:
            What was held back.
        """
        back, self._back = self._back, ""
        if self._inside and self._reader is not None:
            return "", self._reader.finish(complete)
        return back, []
