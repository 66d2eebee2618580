"""What a command writes: text, JSON, tables, bars on a terminal, and errors on one line.

Answers and reports go to stdout; errors, warnings and bars to stderr, bars only where that is a
terminal. Exit codes: 0 good, 1 an error was found or happened, 2 the command was asked for wrongly.
No torch here: this file is read before anything is loaded.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from langchain_ensemble.cli.streams import CannotWriteError, checked_stdout, our_notices
from langchain_ensemble.errors import ConfigError, EnsembleError, EnsembleWarning

GOOD, BAD, USAGE = 0, 1, 2

PIPED_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, wherever typer keeps it


class OneLineGroup(TyperGroup):
    """Commands whose errors are one line on stderr, and whose exit codes are ours."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and, unless called from code, leave with its exit code."""

        def command() -> Any:
            return super(OneLineGroup, self).main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )

        if not standalone_mode:
            return command()
        with _our_warnings(), our_notices():
            code = _guarded(command)
        sys.exit(code)


def _guarded(command: Callable[[], Any]) -> int:
    """Run a command; its exit code. Errors that nobody foresaw keep their traceback."""
    try:
        with checked_stdout():
            code = command()
        return code if isinstance(code, int) else GOOD
    except _UsageError as error:
        say_error(error.format_message())  # type: ignore[attr-defined]
        return USAGE
    except ConfigError as error:
        say_error(str(error))
        return USAGE
    except EnsembleError as error:
        say_error(str(error))
        return BAD
    except CannotWriteError as error:
        if not isinstance(error.__cause__, BrokenPipeError):  # a reader that leaves has enough
            say_error(str(error))
        return BAD
    except typer.Abort:
        say_error("interrupted")
        return BAD


def say_error(message: str) -> None:
    """Write one line on stderr, whatever the message holds."""
    sys.stderr.write(f"error: {one_line(message)}\n")


def one_line(message: str) -> str:
    """Squeeze a message into one line."""
    return " ".join(message.split())


@contextmanager
def _our_warnings() -> Iterator[None]:
    """Show our warnings on one line, without a place in the code; others as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EnsembleWarning)
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, EnsembleWarning):
                sys.stderr.write(f"warning: {one_line(str(message))}\n")
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def use_utf8() -> None:
    """Write UTF-8 into files and pipes, whatever the locale; a terminal shows what it can."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8")


def say(text: str) -> None:
    """Write some of an answer on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Write a report for programs on stdout."""
    say(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def stdout() -> Console:
    """Give a console for tables; colours and the terminal's width only on a terminal."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Give a console beside the answer."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    terminal = file.isatty()
    return Console(
        file=file, width=None if terminal else PIPED_WIDTH, highlight=False, markup=False
    )


class Bars:
    """Progress bars of long loops on stderr; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take a report of a long loop."""
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),  # a stage may be named by members
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=stderr(),
                transient=True,
            )
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def size_text(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
