"""Compiled forwards give the eager tokens and keep their files below the package's cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from langchain_ensemble.members.compiled import inductor_folder
from langchain_ensemble.members.graphs import static_forward
from tests.unit_tests.members.test_graphs import CPU, Pair, engine_of


def test_inductor_keeps_its_files_in_our_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path))
    with inductor_folder() as folder:
        assert folder == os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    with inductor_folder() as folder:
        assert folder == "elsewhere"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # those of torch's compiler are torch's own
def test_compiled_forwards_give_the_eager_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path))
    forwards = static_forward("compiled", CPU)
    assert forwards is not None
    pair = Pair(engine_of("llama"), forwards, [[5, 6, 7], [8]])
    for token in range(3, 12):
        pair.step([[token], [token + 1]])
        pair.truncate([n - (token % 2) for n in pair.lengths])
    pair.step([[9, 10], [11]])
    assert forwards.off is None
    assert (forwards.captured, forwards.replayed) == (2, 10)
    assert any((tmp_path / "inductor").rglob("*.so"))
    torch._dynamo.reset()
