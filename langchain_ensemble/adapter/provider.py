"""``init_chat_model("ensemble:...")``: LangChain's table of providers is closed; we add a row."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from langchain_ensemble.adapter.blocks import PROVIDER
from langchain_ensemble.adapter.config import read_config
from langchain_ensemble.errors import ConfigError

_FILES = (".yaml", ".yml", ".json")


def register() -> None:
    """Make ``langchain.chat_models.init_chat_model("ensemble:...")`` give a ``ChatEnsemble``.

    What follows the colon: ``demo``; a configuration file (``ensemble.yaml``, as
    ``to_config`` writes it); or members, Hub ids or folders joined by ``+``. Everything else is
    given as arguments, as to ``ChatEnsemble``. Nothing is registered before this is called, and
    calling it again changes nothing.

    Raises:
        ConfigError: ``langchain`` is not installed, or has no such table any more.
    """
    try:
        base: Any = importlib.import_module("langchain.chat_models.base")
        table, lookup = base._BUILTIN_PROVIDERS, base._get_chat_model_creator
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"init_chat_model cannot learn a provider here ({error}); install langchain>=1.2, or "
            "give ChatEnsemble(...) itself, for example to create_agent"
        ) from error
    table[PROVIDER] = ("langchain_ensemble", "ChatEnsemble", create)
    lookup.cache_clear()


def create(cls: Any, model: str, **settings: Any) -> Any:
    """Make a chat model out of what follows ``ensemble:``.

    Args:
        cls: ``ChatEnsemble``.
        model: ``demo``, a configuration file, or members joined by ``+``.
        **settings: As to the class; they win over those of a file.

    Raises:
        ConfigError: A file that cannot be read, settings that are wrong.
    """
    if model == "demo":
        return cls.demo(**settings)
    if model.endswith(_FILES) and not Path(model).expanduser().is_dir():
        return cls(**{**read_config(model), **settings})
    return cls(**{"members": model.split("+"), **settings})
