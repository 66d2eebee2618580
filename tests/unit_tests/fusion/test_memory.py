"""DeePEn at the sizes of llama-3 and qwen2.5 stays within its memory; minutes, so not in CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(900)
def test_large_vocabularies_decode_within_six_gib(tmp_path: Path, acceptance_scale: int) -> None:
    if acceptance_scale == 1:
        pytest.skip("minutes of computing; `make acceptance` runs it")
    script = ROOT / "benchmarks" / "relative_memory.py"
    command = [sys.executable, str(script), "--one", "llama-3 x qwen2.5", "--steps", "2"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak_gib"] < 6.0
    assert found["rows_sum_to"] == pytest.approx(1.0, abs=1e-4)
