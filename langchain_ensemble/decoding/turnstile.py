"""One thread at a time; who finds that another has done its work need not enter.

First come, first served, so that nobody waits for more than what stood before it. No forward, no
request: only who may run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

BRIEFLY = 0.05
"""Seconds that a thread which must not wait gives the few instructions under the mutex."""


class _Waiter:
    """A thread that waits, and what would spare it the entry."""

    def __init__(self, served: Callable[[], bool] | None) -> None:
        self.served = served
        self.entered = False
        self.woken = threading.Event()


class Turnstile:
    """A lock that is handed from thread to thread, first come, first served."""

    def __init__(self) -> None:
        """Start free."""
        self._mutex = threading.Lock()
        self._busy = False
        self._waiters: deque[_Waiter] = deque()

    def enter(self, served: Callable[[], bool] | None = None) -> bool:
        """Wait for one's turn.

        Args:
            served: Asked when somebody leaves: whether this thread has what it came for.

        Returns:
            Whether the thread is inside, and has to :meth:`leave`; False: it was served.
        """
        with self._mutex:
            if served is not None and served():
                return False
            if not self._busy:
                self._busy = True
                return True
            waiter = _Waiter(served)
            self._waiters.append(waiter)
        try:
            waiter.woken.wait()
        except BaseException:  # interrupted while it waited: nobody may wait for it
            self._withdraw(waiter)
            raise
        return waiter.entered

    def try_enter(self) -> bool:
        """Enter if nobody is inside; never waits, whoever calls it (the garbage collector may)."""
        if not self._mutex.acquire(timeout=BRIEFLY):
            return False
        try:
            free = not self._busy
            self._busy = True
            return free
        finally:
            self._mutex.release()

    def leave(self) -> None:
        """Let everybody go who was served, and the first of the others in."""
        with self._mutex:
            left: deque[_Waiter] = deque()
            for waiter in self._waiters:
                if waiter.served is not None and waiter.served():
                    waiter.woken.set()
                else:
                    left.append(waiter)
            self._waiters = left
            self._busy = bool(left)
            if left:
                first = left.popleft()
                first.entered = True
                first.woken.set()

    def _withdraw(self, waiter: _Waiter) -> None:
        with self._mutex:
            inside = waiter.entered
            if not inside and waiter in self._waiters:
                self._waiters.remove(waiter)
        if inside:
            self.leave()

    def __enter__(self) -> None:
        """Wait for one's turn."""
        self.enter()

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.leave()
