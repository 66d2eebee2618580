"""How long one voice's forwards took, without making anything wait for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time between beginnings and ends on one device.

    On CUDA, events are put into the device's own queue, so that the host goes on at once and the
    time is that of the device; elsewhere the host's clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        """Start at zero."""
        self._device = device
        self._total = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside; not to be nested."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            try:
                yield
            finally:
                self._total += time.perf_counter() - started
            return
        with torch.cuda.device(self._device):
            begin, end = _event(), _event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((begin, end))

    @property
    def seconds(self) -> float:
        """The sum so far; on CUDA this waits for the device."""
        for begin, end in self._events:
            end.synchronize()
            self._total += begin.elapsed_time(end) / 1000
        self._events = []
        return self._total


def _event() -> torch.cuda.Event:
    made: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return made
