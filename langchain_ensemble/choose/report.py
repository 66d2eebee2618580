"""The report of ``choose_members``: its findings, as a page too."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from langchain_ensemble.choose.findings import Findings, save
from langchain_ensemble.choose.page import page


@dataclass(frozen=True)
class Choice(Findings):
    """Which members belong together, and whether it pays: what was found, and how it looks."""

    def to_html(self, path: str | Path | None = None) -> str:
        """Give everything as one page that needs nothing else.

        Args:
            path: Also write it there.

        Returns:
            The page; with pictures where matplotlib is installed (the extra ``plots``).

        Raises:
            ConfigError: It cannot be written there.
        """
        text = page(self)
        if path is not None:
            save(path, text)
        return text

    def _repr_html_(self) -> str:
        """The page, in a frame of its own so that its style stays there: for notebooks."""
        inner = escape(page(self))
        return (
            f'<iframe srcdoc="{inner}" sandbox title="Which members belong together?" '
            'style="width:100%;height:40rem;border:0"></iframe>'
        )

    def __str__(self) -> str:
        """The verdict."""
        return self.verdict.sentence
