"""Streams that cannot be written, and what is logged while a command runs."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_ensemble.cli.console import Bars, OneLineGroup
from langchain_ensemble.cli.streams import IMPORT_NOTES, our_notices

PROMPT = "Once upon a time"


def shell(redirection: str, environment: dict[str, str], *arguments: str, **more: str):
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable]
    return subprocess.run(
        [*command, "-m", "langchain_ensemble", *arguments],
        env=environment | more,
        capture_output=True,
        check=False,
        timeout=120,
        text=True,
        stdin=subprocess.DEVNULL,
    )


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])  # "" keeps text until a flush, which fails
def test_a_full_disk_is_one_line(environment, members, unbuffered):
    run = ["run", PROMPT, *members, "--max-tokens", "4"]
    done = shell(">/dev/full", environment, *run, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "error: stdout cannot be written: No space left on device\n"


@needs_full
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["info"]])
def test_a_full_disk_is_one_line_for_tables_too(environment, arguments):
    done = shell(">/dev/full", environment, *arguments, PYTHONUNBUFFERED="")
    assert done.returncode == 1
    assert done.stderr == "error: stdout cannot be written: No space left on device\n"


def test_a_closed_stdout_is_one_line(environment, members):
    done = shell(">&-", environment, "run", PROMPT, *members)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout is closed; ")
    assert done.stderr.count("\n") == 1


def test_a_closed_stderr_or_stdin_is_no_crash(environment, members):
    done = shell("2>&-", environment, "run", PROMPT, *members, "--max-tokens", "4")
    assert done.returncode == 0
    assert done.stdout
    done = shell("<&-", environment, "run", *members)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no prompt; ")
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_stdout_keeps_its_traceback(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), "elsewhere")

    monkeypatch.setattr("typer.core.TyperGroup.main", fails)
    with pytest.raises(OSError, match="elsewhere"):
        OneLineGroup(name="x").main([])


def test_a_cache_that_cannot_be_written_is_told_once(environment, members, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("no folder")
    run = ["run", PROMPT, *members, "--max-tokens", "4"]
    done = shell("", environment, *run, LANGCHAIN_ENSEMBLE_CACHE=str(taken))
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert [line for line in told if not line.startswith(f"warning: cache folder {taken} ")] == []
    assert len([line for line in told if "cannot be written" in line]) == 1
    assert len(told) == len(set(told))


def test_notes_of_imports_are_left_out_and_the_rest_is_heard(capsys):
    heard: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    keep, loggers = Keep(), [logging.getLogger(name) for name in IMPORT_NOTES]
    for logger in loggers:  # not the root: torch's loggers do not reach it
        logger.addHandler(keep)
    try:
        with our_notices():
            for name in IMPORT_NOTES:
                logging.getLogger(name).warning("note of %s", name)
                logging.getLogger(name).error("error of %s", name)
            logging.getLogger("torchao.quantization").warning("of weights")
            for _ in range(2):
                logging.getLogger("langchain_ensemble.x").warning("two\nlines")
        logging.getLogger("torchao").warning("afterwards")
    finally:
        for logger in loggers:
            logger.removeHandler(keep)
    assert heard == [*(f"error of {name}" for name in IMPORT_NOTES), "of weights", "afterwards"]
    assert capsys.readouterr().err == "warning: two lines\n"


class Terminal(io.StringIO):
    """A terminal to write on."""

    def isatty(self) -> bool:
        return True


def test_bars_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Bars() as bars:
        bars("unite(a[/b]+[red]c)", 1, 2)
    assert "unite(a[/b]+[red]c)" in sys.stderr.getvalue()  # type: ignore[attr-defined]
