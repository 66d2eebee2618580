"""From options and a configuration file to the settings of an ensemble; no torch.

A configuration is what ``EnsembleLLM.to_config`` writes. Options on the line win over it; members
come from one of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from langchain_ensemble.adapter.config import read_config
from langchain_ensemble.adapter.fields import EnsembleFields
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.params import WEIGHT_RULES, Member

Kind = TypeVar("Kind", bound=EnsembleFields)


def make_ensemble(
    members: Sequence[str] | None, config: Path | None, **overrides: Any
) -> EnsembleLLM:
    """Make the ensemble that a command line describes; nothing is loaded.

    Args:
        members: ``name=id`` or ``id``, one a member.
        config: A configuration file.
        **overrides: Fields that were given on the line; None and ``[]`` stand for "not given".

    Returns:
        The ensemble.

    Raises:
        ConfigError: No members, or settings that are unknown or contradict each other.
    """
    return make(EnsembleLLM, members, config, **overrides)


def make(
    kind: type[Kind], members: Sequence[str] | None, config: Path | None, **overrides: Any
) -> Kind:
    """Make an ensemble of one of the LangChain classes, as :func:`make_ensemble`.

    Args:
        kind: The class.
        members: ``name=id`` or ``id``, one a member.
        config: A configuration file.
        **overrides: Fields that were given on the line; None and ``[]`` stand for "not given".

    Returns:
        The ensemble.

    Raises:
        ConfigError: No members, or settings that are unknown or contradict each other.
    """
    given = {name: value for name, value in overrides.items() if value not in (None, [])}
    if members and config is not None:
        raise ConfigError("members come from -m or from -c, not from both; leave one out")
    if not members and config is None:
        raise ConfigError(
            "no members; give each with -m name=id (a Hub id or a folder), or a file with -c; "
            "python -m langchain_ensemble.demo shows two that come with the package"
        )
    settings: dict[str, Any] = {"members": read_members(members or [])}
    if config is not None:
        settings = read_config(config)
    if "max_tokens" in given:
        settings.pop("max_new_tokens", None)
    if "weights" in given:
        given["weights"] = read_weights(given["weights"])
    fusion = settings.get("fusion")
    if isinstance(fusion, dict) and fusion.get("name") == given.get("fusion"):
        del given["fusion"]  # the same fusion: the file's settings for it stay
    return kind(**{**settings, **given})


def one_config(paths: Sequence[Path] | None) -> Path | None:
    """Give the one configuration file of a command line, if there is one.

    Args:
        paths: What ``-c`` was given, in order.

    Raises:
        ConfigError: More than one.
    """
    if not paths:
        return None
    if len(paths) > 1:
        named = ", ".join(repr(str(path)) for path in paths)
        raise ConfigError(
            f"-c is given {len(paths)} times ({named}), where one file is read; put all settings "
            "into one file"
        )
    return paths[0]


def read_members(items: Sequence[str]) -> list[Member]:
    """Read ``name=id`` or ``id``; a folder's path may hold ``=`` itself.

    Args:
        items: What ``-m`` was given, in order.

    Raises:
        ConfigError: A name or an id is empty.
    """
    members = []
    for item in items:
        name, sign, model = item.partition("=")
        if not sign or "/" in name or "\\" in name:
            name, model = "", item
        elif not name:
            raise ConfigError(f"-m {item!r} has no name before '='; write name=id or id")
        if not model:
            raise ConfigError(f"-m {item!r} has no model; write name=id, a Hub id or a folder")
        members.append(Member(model, name=name or None))
    return members


def read_weights(text: str) -> str | dict[str, float] | tuple[float, ...]:
    """Read a rule (``uniform``, ``online``, ``prompt``, ``calibrated``) or numbers.

    Numbers are ``a=0.6,b=0.4``, or ``0.6,0.4`` in member order.

    Raises:
        ConfigError: Neither; a name twice; something that is no number.
    """
    if text in WEIGHT_RULES:
        return text
    parts = [part.strip() for part in text.split(",")]
    named = ["=" in part for part in parts]
    if not any(named):
        return tuple(_number(part, part) for part in parts)
    if not all(named):
        raise ConfigError(f"--weights {text!r} names some members and not others; name all or none")
    weights: dict[str, float] = {}
    for part in parts:
        name, _, number = part.rpartition("=")
        if name in weights:
            raise ConfigError(f"--weights {text!r} names member {name!r} twice")
        weights[name] = _number(number, part)
    return weights


def _number(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--weights has {part!r}, where {text!r} is no number; write name=0.6,name=0.4"
        ) from None


def read_prompt(prompt: str | None) -> str:
    """Give the prompt of the line, or else stdin without the newline that ends it.

    Raises:
        ConfigError: No prompt and stdin is a terminal or closed, or stdin is not UTF-8.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError('no prompt; give it as "text" or send it on stdin')
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the prompt on stdin is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); "
            "convert it first"
        ) from None
