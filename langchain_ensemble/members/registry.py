"""Weights in memory, once a process: reference-counted, keyed by what changes their bytes.

A key never holds a member's name, template, system prompt or token. Whoever asks for a key that is
being loaded waits for it; two different keys load side by side. When the last lease is released the
weights are dropped. A forked child starts with an empty registry: what the parent put on a GPU is
not usable there.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from langchain_ensemble.errors import MemberError

T = TypeVar("T")


@dataclass
class _Entry:
    """One key's value, its users, and the lock under which it is loaded."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    value: Any = None
    loaded: bool = False
    free: Callable[[Any], None] | None = None


_guard = threading.Lock()
_entries: dict[Hashable, _Entry] = {}


class Lease(Generic[T]):
    """A share in a value of the registry; give it back with :meth:`release`."""

    def __init__(self, key: Hashable | None, value: T, entry: _Entry | None = None) -> None:
        """Hold one count of a key's entry; None holds a value that nobody shares."""
        self._key: Hashable | None = key
        self._entry = entry
        self._value: T | None = value
        self._pid = os.getpid()

    @classmethod
    def private(cls, value: T) -> Lease[T]:
        """Hold a value that is not in the registry, for a module that the caller made."""
        return cls(None, value)

    @property
    def value(self) -> T:
        """The shared value.

        Raises:
            MemberError: The lease was released.
        """
        if self._value is None:
            raise MemberError("these weights were released; load the member again")
        return self._value

    def release(self) -> None:
        """Give the share back; the last one frees the value. A second call does nothing."""
        if self._value is None:
            return
        self._value = None
        entry = self._entry
        if entry is None or self._pid != os.getpid():
            return
        with _guard:
            entry.users -= 1
            last = entry.users == 0
            if last and _entries.get(self._key) is entry:
                del _entries[self._key]
        if last:
            if entry.free is not None:
                entry.free(entry.value)
            entry.value = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def acquire(
    key: Hashable, load: Callable[[], T], free: Callable[[T], None] | None = None
) -> Lease[T]:
    """Share the value of a key, loading it when nobody holds it.

    Args:
        key: What changes bytes in memory.
        load: Makes the value; called at most once while anybody holds the key.
        free: What is done with the value when the last lease is released.

    Returns:
        A lease. When ``load`` raises, so does this, and the next caller tries again.
    """
    with _guard:
        entry = _entries.setdefault(key, _Entry())
        entry.users += 1
    try:
        with entry.lock:
            if not entry.loaded:
                entry.value = load()
                entry.free = free
                entry.loaded = True
    except BaseException:
        with _guard:
            entry.users -= 1
            if entry.users == 0:
                del _entries[key]
        raise
    return Lease(key, entry.value, entry)


def held() -> dict[Hashable, int]:
    """Keys that are held now, each with the number of its leases."""
    with _guard:
        return {key: entry.users for key, entry in _entries.items() if entry.loaded}


def _forget() -> None:
    """Start anew in a forked child."""
    global _guard
    _guard = threading.Lock()
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
