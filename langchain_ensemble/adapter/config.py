"""An ensemble's settings in a file: YAML, which JSON is a part of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from langchain_ensemble.errors import ConfigError


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Read settings.

    Args:
        source: A path, or the settings themselves.

    Returns:
        Name → value.

    Raises:
        ConfigError: No such file, no YAML, or not a mapping.
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source).expanduser()
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"the configuration {str(path)!r} is not YAML: {where}") from error
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise ConfigError(
            f"the configuration {str(path)!r} is no mapping of names to settings; "
            "it needs at least members:"
        )
    return config


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write settings as YAML, in their order.

    Args:
        path: Where to; an existing file is replaced.
        config: Name → JSON value.

    Raises:
        ConfigError: It cannot be written there.
    """
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    try:
        Path(path).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the configuration {str(path)!r}: {error}") from error
