"""``tools_by="main"``: a smaller set of ``benchmarks/tool_calls.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calls() -> ModuleType:
    path = ROOT / "benchmarks" / "tool_calls.py"
    spec = importlib.util.spec_from_file_location("tool_calls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.modules["tool_calls"] = list(sys.path), module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@pytest.mark.parametrize("fusion", ["unite", "average"])
def test_the_ensemble_calls_the_right_tool_at_least_as_often_as_main_alone(
    calls: ModuleType, shared: Path, acceptance_scale: int, fusion: str
) -> None:
    found = calls.requests(10 * acceptance_scale, calls.countries(shared))
    said = calls.measure(found, ("alone", "main"), fusion=fusion)
    (row,) = [
        row for row in calls.table(found, said) if (row["kind"], row["where"]) == ("all", "both")
    ]
    for what in ("right", "right_tool"):
        assert row[what]["main"] >= row[what]["alone"], what
    assert row["called"]["main"] >= 0.5, "half of the calls are opened for them"
