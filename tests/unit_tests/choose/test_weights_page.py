"""The page on weights quotes the benchmark as it was run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_quotes_the_benchmark():
    spec = importlib.util.spec_from_file_location("weights", ROOT / "benchmarks" / "weights.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    page = (ROOT / "docs" / "weights.md").read_text("utf-8")
    tables = benchmark.tables(json.loads(benchmark.OUT.read_text("utf-8"))).split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert table.strip() in page
