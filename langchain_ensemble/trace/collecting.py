"""Where whole traces go: to whoever opened a ``tracing()`` block around the call.

A context variable: threads and tasks that LangChain starts inside the block inherit it, calls of
others never see it, and nothing travels through LangChain's messages, caches or run traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from langchain_ensemble.trace.recording import Trace

_open: ContextVar[tuple[list[Trace], ...]] = ContextVar("langchain_ensemble_traces", default=())


@contextmanager
def tracing() -> Iterator[list[Trace]]:
    """Trace every answer of every ensemble in the block, as ``trace=True`` does.

    Yields:
        A list that gets one :class:`Trace` an answer, in the order in which they end: those of
        chains, agents, batches and streams too, in every thread and task that is started inside.
        An answer out of LangChain's cache was not decoded, and has none.
    """
    traces: list[Trace] = []
    token = _open.set((*_open.get(), traces))
    try:
        yield traces
    finally:
        _open.reset(token)


def is_tracing() -> bool:
    """Whether somebody waits for traces."""
    return bool(_open.get())


def keep(trace: Trace) -> None:
    """Give a finished trace to everybody who waits for it.

    Args:
        trace: Of one answer.
    """
    for traces in _open.get():
        traces.append(trace)
