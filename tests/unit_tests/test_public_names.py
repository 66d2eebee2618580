"""What users may import from the top of the package, and what that costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import langchain_ensemble

PUBLIC = [
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


def test_public_names_are_these_and_sorted():
    assert langchain_ensemble.__all__ == PUBLIC == sorted(PUBLIC)


def test_every_public_name_is_there():
    missing = [name for name in PUBLIC if getattr(langchain_ensemble, name, None) is None]
    assert missing == []
    assert set(dir(langchain_ensemble)) >= set(PUBLIC)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Ensembel'"):
        langchain_ensemble.Ensembel  # noqa: B018


@pytest.mark.parametrize("name", ["ConfigError", "VocabularyError", "MemberError", "CacheError"])
def test_errors_are_ours_and_pythons(name):
    error = getattr(langchain_ensemble, name)
    assert issubclass(error, langchain_ensemble.EnsembleError)
    assert issubclass(error, (ValueError, RuntimeError))


def test_import_reads_neither_torch_nor_transformers():
    code = (
        "import sys, langchain_ensemble as p; p.EnsembleLLM; p.Member('gpt2');"
        "p.EnsembleLLM(members=['a/b', 'c/d']);"
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
