"""The standard streams of a command: what cannot be written, and what others log there.

A full disk or a closed stdout is one line on stderr and exit code 1; a reader that leaves is quiet.
Our log warnings are shown as our other warnings are. Two libraries log notes for their own
developers when they are imported, which says nothing about the members; those are left out.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

IMPORT_NOTES = ("torchao", "torch.utils._pytree")
"""Loggers of imports: kernels built for other versions, types registered in an old way. Their
children, which log what is done with weights, are heard."""


class CannotWriteError(Exception):
    """Stdout cannot be written; its cause is the system's error."""


class _Checked:
    """A stream whose failures can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _telling():
            return self._stream.write(text)

    def flush(self) -> None:
        with _telling():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWriteError(f"stdout cannot be written: {error.strerror or error}") from error


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Raise ``CannotWriteError`` for what cannot be written to stdout.

    Raises:
        CannotWriteError: stdout was closed before the start, or a write fails.
    """
    if sys.stderr is None:  # closed by the caller, who wants none of it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good)
    if sys.stdout is None:
        raise CannotWriteError("stdout is closed; send it to a file, a pipe or /dev/null")
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Checked(stream))
    try:
        yield
        sys.stdout.flush()
    except CannotWriteError:
        _drop(stream)
        raise
    finally:
        sys.stdout = stream


def _drop(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, or Python would try again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Notices(logging.Handler):
    """Shows log warnings of this package, the same one once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._said:
            self._said.add(text)
            sys.stderr.write(f"warning: {text}\n")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def our_notices() -> Iterator[None]:
    """Show our log warnings as ``warning:`` lines, and no import notes of libraries."""
    ours, notices = logging.getLogger("langchain_ensemble"), _Notices()
    others = [logging.getLogger(name) for name in IMPORT_NOTES]
    heard = ours.propagate
    ours.addHandler(notices)
    ours.propagate = False  # or a handler of the root would say it again
    for logger in others:
        logger.addFilter(_is_error)
    try:
        yield
    finally:
        ours.removeHandler(notices)
        ours.propagate = heard
        for logger in others:
            logger.removeFilter(_is_error)
