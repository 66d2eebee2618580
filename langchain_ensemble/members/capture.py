"""How a function of static tensors becomes one that is fast to run again.

On a GPU :class:`CudaCapture`; :class:`CallAgain` runs the same function over the same buckets, pads
and trash slots anywhere. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

Given = TypeVar("Given")
"""What a region gives: a tensor, or several."""

WARM = 2
"""Runs before a capture: libraries set themselves up, allocations settle."""


class Capture(Protocol):
    """Turns a function of static tensors into one that is fast to run again."""

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """The replay: gives the region's result for what its static tensors then hold."""


class CallAgain:
    """Captures nothing: the replay is the region."""

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """The region itself."""
        return region


class CudaCapture:
    """CUDA graphs, captured by hand, in a memory pool of the member's own.

    By hand because ``mode="reduce-overhead"`` lets the graphs of two models that alternate
    overwrite each other's outputs. The graphs of one member share a pool: they are replayed one
    after another, and what one gives is copied out before the next.
    """

    def __init__(self, device: torch.device) -> None:
        """Choose the device; nothing is allocated before the first capture."""
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """Warm up on a side stream, then record the region's kernels."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            present = torch.cuda.current_stream()
            self._stream.wait_stream(present)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    region()
            present.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = region()

        def replay() -> Given:
            graph.replay()
            return output

        return replay


class Chain:
    """One capture after another: compiled code, then its graph."""

    def __init__(self, *captures: Capture) -> None:
        """Join captures, the first applied first."""
        self._captures = captures

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """Apply all."""
        for capture in self._captures:
            region = capture(region)
        return region
