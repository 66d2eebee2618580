"""Members on devices of their own at the same time: a thread a device, where there are several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class Devices:
    """Runs work of several devices side by side, and that of one device in its order."""

    def __init__(self) -> None:
        """Start without threads; there are none as long as all work is of one device."""
        self._workers: dict[torch.device, ThreadPoolExecutor] = {}

    def run(self, work: Sequence[tuple[torch.device, Callable[[], T]]]) -> list[T]:
        """Do some work.

        Args:
            work: Device and what to do there.

        Returns:
            What each gave, in order.

        Raises:
            Exception: The first that any of them raised; the others have ended by then.
        """
        if len({device for device, _ in work}) <= 1:
            return [do() for _, do in work]
        futures = [self._worker(device).submit(_inferring, device, do) for device, do in work]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def _worker(self, device: torch.device) -> ThreadPoolExecutor:
        if device not in self._workers:
            name = f"member-{device}"
            self._workers[device] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        return self._workers[device]

    def close(self) -> None:
        """End the threads; work that runs is waited for."""
        for worker in self._workers.values():
            worker.shutdown()
        self._workers = {}


def _inferring(device: torch.device, do: Callable[[], T]) -> T:
    """Inference mode and the current device belong to a thread."""
    with torch.inference_mode():
        if device.type == "cuda":
            with torch.cuda.device(device):
                return do()
        return do()
