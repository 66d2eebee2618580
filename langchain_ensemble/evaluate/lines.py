"""Files of JSON lines, and what is said of one that is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_ensemble.errors import ConfigError


def json_lines(path: str | Path, what: str) -> Iterator[tuple[int, Any]]:
    """Read a file of JSON lines; empty lines are none.

    Args:
        path: Where it is.
        what: What it holds, for errors: ``"dev set"``.

    Yields:
        Number of a line, from 1, and what it holds.

    Raises:
        ConfigError: The file cannot be read, or a line is no JSON.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the {what} {str(path)!r}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"{what} {str(path)!r}, line {number} is no JSON: {error}"
                ) from error
