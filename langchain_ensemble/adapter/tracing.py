"""``traced``: an answer and its trace at once, of LLM and chat model alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_ensemble.trace import Trace, tracing


@dataclass(frozen=True)
class Traced:
    """An answer that was watched.

    Attributes:
        answer: What ``invoke`` gives.
        trace: How it came about.
    """

    answer: Any
    trace: Trace

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.trace.text

    def __repr__(self) -> str:
        """One line; everything is in the trace, and on its page."""
        sure, count = self.trace.confidence.confidence, len(self.trace.tokens)
        return f"Traced({self.text!r}, {count} tokens, confidence {sure:.2f})"

    def _repr_html_(self) -> str:
        return self.trace._repr_html_()


class TracedCalls:
    """Calls that give an answer and its trace."""

    def traced(self, prompt: Any, **arguments: Any) -> Traced:
        """Answer one prompt, and keep what each member wanted at every token.

        Args:
            prompt: What ``invoke`` takes.
            **arguments: Any other argument of a call. Nothing comes out of LangChain's cache.

        Returns:
            ``answer``, as ``invoke`` gives it, and ``trace``, with ``to_html()`` and ``save()``.

        Raises:
            EnsembleError: As ``invoke``.
        """
        model: Any = self
        fresh = model.model_copy(update={"cache": False})
        fresh._lease = model._lease
        with tracing() as traces:
            answer = fresh.invoke(prompt, **{**arguments, "n": 1})
        return Traced(answer, traces[-1])
