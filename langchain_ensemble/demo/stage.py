"""How the demo looks on a terminal. Knows text only."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

LABEL = 9
"""Columns of a speaker's name."""

EMPTY = "(ends at once)"
"""Of an answer without a word."""


class Stage:
    """Prints titles, questions and answers as they come."""

    def __init__(self, console: Console) -> None:
        """Start.

        Args:
            console: Where to.
        """
        self._console = console

    def title(self, text: str, what: str) -> None:
        """Begin a part.

        Args:
            text: Its name.
            what: One sentence on what is shown.
        """
        self._console.print()
        self._console.print(Rule(Text(text, style="bold"), align="left", style="dim"))
        self.note(what)

    def note(self, text: str) -> None:
        """Say something that no member said."""
        self._console.print(text, style="dim", markup=False, highlight=False)

    def ask(self, text: str) -> None:
        """Show what is asked."""
        self.line("you", text, "cyan")

    def line(self, label: str, text: str, style: str = "") -> None:
        """Show something that is complete.

        Args:
            label: Who or what speaks.
            text: What.
            style: How it looks.
        """
        self._label(label)
        self._console.print(_indented(text), style=style, markup=False, highlight=False)

    def show(self, label: str, pieces: Iterable[str]) -> str:
        """Print an answer as it comes.

        Args:
            label: Who speaks.
            pieces: Of the answer.

        Returns:
            The whole answer.
        """
        self._label(label)
        said = ""
        for piece in pieces:
            text = piece if said else piece.lstrip(" ")
            said += text
            self._console.out(_indented(text), end="", highlight=False)
            self._console.file.flush()
        self._console.print("" if said else EMPTY, style="dim")
        return said

    def _label(self, label: str) -> None:
        self._console.print(f"[bold]{label:>{LABEL}}[/bold] ", end="")


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * (LABEL + 1))
