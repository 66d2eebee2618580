"""Fixtures: shared data, the scale of random cases, pico models, a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import pico as pico_models

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with tokenizers, models, texts and golden numbers (``LANGCHAIN_ENSEMBLE_SHARED``)."""
    folder = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "tokenizers").is_dir():
        reason = f"no shared data in {folder}; set LANGCHAIN_ENSEMBLE_SHARED"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def acceptance_scale() -> int:
    """Factor for the number of random cases: 1 in CI, 10 in ``make acceptance``."""
    return int(os.environ.get("ACCEPTANCE", "1"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests' entries out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path_factory.mktemp("ensemble-cache")))
        patch.setenv("LANGSMITH_TRACING", "false")
        yield


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``pico("llama" | "qwen2" | "gpt2" | "neox", seed=0)`` -> folder of a model, built once."""
    built: dict[tuple[str, int], Path] = {}

    def get(kind: str, seed: int = 0) -> Path:
        if (kind, seed) not in built:
            folder = tmp_path_factory.mktemp(f"pico-{kind}-{seed}")
            built[kind, seed] = pico_models.build(kind, folder, seed)
        return built[kind, seed]

    return get
