"""Compiled forwards: Inductor joins the small operations between the matrix products.

What it writes is kept on disk below the package's cache folder, so that a second process pays for
tracing only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch

from langchain_ensemble.store import Store

Given = TypeVar("Given")

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_lock = threading.Lock()
"""One thread compiles at a time: the folder is told through the environment."""


class Compiled:
    """Compiles a function of static tensors, each shape for itself."""

    def __init__(self, device: torch.device) -> None:
        """Choose how Inductor writes.

        Args:
            device: Where the tensors are. On the CPU what calls the kernels is C++ as well; on CUDA
                it is captured, and nobody waits for it.
        """
        self._options: dict[str, Any] = {"size_asserts": False}  # static shapes
        if device.type == "cpu":
            self._options["cpp_wrapper"] = True

    def __call__(self, region: Callable[[], Given]) -> Callable[[], Given]:
        """Compile, and run once so that what follows is fast (or fails now).

        One graph if the model allows it, else as many as it takes.
        """
        try:
            return _compile(region, self._options, whole=True)
        except torch._dynamo.exc.Unsupported:
            return _compile(region, self._options, whole=False)


def _compile(
    region: Callable[[], Given], options: dict[str, Any], *, whole: bool
) -> Callable[[], Given]:
    """Compile a region, and run it once."""

    def run() -> Given:
        return region()

    # Dynamo counts recompilations a code object: every region gets one of its own. Nothing that a
    # region stands on ever changes but what its tensors hold, as for a CUDA graph; to ask that of
    # every weight before each call takes longer than a small layer. Older torch asks, and so do
    # the pieces of a broken graph: one function of theirs may run over several shapes.
    own = FunctionType(run.__code__.replace(), globals(), "run", None, run.__closure__)
    no_guards = getattr(torch.compiler, "skip_all_guards_unsafe", None)
    if whole and no_guards is not None:
        options = {**options, "guard_filter_fn": no_guards}
    compiled: Callable[[], Given] = torch.compile(
        own, dynamic=False, fullgraph=whole, options=options
    )
    with _lock, inductor_folder():
        compiled()
    return compiled


@contextmanager
def inductor_folder() -> Iterator[str]:
    """Let Inductor keep its files below the package's cache folder, unless the user chose one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # seconds to import

    before = os.environ.get(_FOLDER)
    usual = os.path.abspath(default_cache_dir())  # torch writes it into the environment itself
    chosen = None if before == usual else before
    folder = chosen or str(Store().folder / "inductor")
    os.environ[_FOLDER] = folder
    try:
        yield folder
    finally:
        if before is None:
            os.environ.pop(_FOLDER, None)
        else:
            os.environ[_FOLDER] = before
