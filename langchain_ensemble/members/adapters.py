"""Adapters on shared weights: which rows of a forward run with which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

BASE = "__base__"
"""What PEFT calls a row without an adapter."""

_rows: ContextVar[Sequence[str] | None] = ContextVar("adapter_rows", default=None)
"""Adapter of each row of the forward that this thread runs now; None: all run the base."""


@contextmanager
def adapter_rows(adapters: Sequence[str] | None) -> Iterator[None]:
    """Say which adapter each row of the forwards inside runs with.

    Args:
        adapters: One name a row, :data:`BASE` for none; None where all rows run the base.
    """
    token = _rows.set(adapters)
    try:
        yield
    finally:
        _rows.reset(token)
