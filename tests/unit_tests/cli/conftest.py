"""The command line, run in this process (``invoke``) or as a process of its own (``process``)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from langchain_ensemble.cli.app import app

Invoke = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def invoke() -> Invoke:
    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "LANGCHAIN_ENSEMBLE_CACHE": str(tmp_path / "cache"),
    }


@pytest.fixture
def process(environment: dict[str, str]) -> Process:
    def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "langchain_ensemble", *arguments]
        return subprocess.run(
            command, capture_output=True, timeout=120, check=False, env=environment, **settings
        )

    return run


@pytest.fixture
def members(shared: Path) -> list[str]:
    """Options of two real members."""
    models = shared / "models"
    return ["-m", f"stories={models / 'stories260K'}", "-m", f"baby={models / 'babyllama-361'}"]
