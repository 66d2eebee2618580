"""Several language models with different tokenizers decode one answer together.

LangChain sees one chat model, :class:`ChatEnsemble`, or one LLM over raw text,
:class:`EnsembleLLM`; ``ChatEnsemble.demo()`` runs offline.
Importing this package reads neither torch nor transformers (seconds); :class:`Ensemble`, the
engine without LangChain, is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_ensemble._version import __version__
from langchain_ensemble.adapter.provider import register
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.errors import (
    AbstainedError,
    CacheError,
    ConfigError,
    ContextError,
    DeadlineError,
    DownloadError,
    EnsembleError,
    EnsembleWarning,
    MemberError,
    MemoryLimitError,
    OverloadedError,
    UnfinishedError,
    VocabularyError,
)
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.params import Member

if TYPE_CHECKING:
    from langchain_ensemble.choose.members import choose_members
    from langchain_ensemble.ensemble import Ensemble

__all__ = [
    "AbstainedError",
    "CacheError",
    "ChatEnsemble",
    "ConfigError",
    "ContextError",
    "DeadlineError",
    "DownloadError",
    "Ensemble",
    "EnsembleError",
    "EnsembleLLM",
    "EnsembleWarning",
    "Member",
    "MemberError",
    "MemoryLimitError",
    "OverloadedError",
    "UnfinishedError",
    "VocabularyError",
    "__version__",
    "choose_members",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "Ensemble":
        from langchain_ensemble.ensemble import Ensemble  # torch and transformers: seconds

        return Ensemble
    if name == "choose_members":
        from langchain_ensemble.choose.members import choose_members  # the same

        return choose_members
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
