"""What tests of an LLM look with: recorders of callbacks, round trips, threads that go on."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from langchain_core._api import LangChainBetaWarning
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumps, loads
from langchain_core.outputs import Generation, LLMResult

T = TypeVar("T")


class Recorder(BaseCallbackHandler):
    """What the callbacks of a run were told."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.tokens: list[str] = []
        self.chunks: list[Any] = []
        self.ends: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        """Note the prompts."""
        self.starts += prompts

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Note a token and its chunk."""
        self.tokens.append(token)
        self.chunks.append(kwargs.get("chunk"))

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Note the result."""
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        """Note the error."""
        self.errors.append(error)


class AsyncRecorder(AsyncCallbackHandler):
    """As :class:`Recorder`, for async callbacks."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Note a token."""
        self.tokens.append(token)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own."""
    return asyncio.run(work)


def reload(llm: BaseLLM, **how: Any) -> BaseLLM:
    """Write an LLM with ``dumps`` and read it with ``loads`` (``how`` is for ``loads``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        package = type(llm).__module__.split(".")[0]
        allowed: dict[str, Any] = {"allowed_objects": [type(llm)], "valid_namespaces": [package]}
        loaded = loads(dumps(llm), **allowed, **how)
    return cast("BaseLLM", loaded)


def info_of(generation: Generation) -> dict[str, Any]:
    """Give a generation's info, which must be there."""
    assert generation.generation_info is not None
    return generation.generation_info


@contextmanager
def counting(llm: BaseLLM) -> Iterator[list[str]]:
    """Note the prompts that reach the model, past the cache."""
    seen = Recorder()
    before, llm.callbacks = llm.callbacks, [seen]
    try:
        yield seen.starts
    finally:
        llm.callbacks = before


def threads_inside(package: str, seconds: float) -> list[str]:
    """Give the threads, other than this one, that still run a package's code after some time.

    Args:
        package: Name of the package.
        seconds: How long they have to leave it.

    Returns:
        Names of the functions they are in; empty is good.
    """
    deadline = time.monotonic() + seconds
    while True:
        inside = [name for name in map(_where(package), _other_threads()) if name]
        if not inside or time.monotonic() > deadline:
            return inside
        time.sleep(0.05)


def _other_threads() -> list[Any]:
    me = threading.get_ident()
    return [frame for ident, frame in sys._current_frames().items() if ident != me]


def _where(package: str) -> Any:
    def find(frame: Any) -> str | None:
        while frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            if module.split(".")[0] == package:
                return f"{module}.{frame.f_code.co_name}"
            frame = frame.f_back
        return None

    return find
