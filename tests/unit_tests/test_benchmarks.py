"""The benchmarks' own code: rows, rounds, tables, and the GPU's measures over tiny models."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import common

    return common


@pytest.fixture
def run(common):
    import run

    return run


@pytest.fixture
def gpu(common):
    import gpu

    return gpu


@pytest.fixture
def measures(common):
    import gpu_measures

    return gpu_measures


def test_a_bar_is_held_from_the_right_side(common):
    assert common.Row("m", "o", 1.0, 1.0).holds is True
    assert common.Row("m", "o", 1.1, 1.0).holds is False
    assert common.Row("m", "o", 1.1, 1.0, least=True).holds is True
    assert common.Row("m", "o", 0.9, 1.0, least=True).holds is False
    assert common.Row("m", "o", 0.9).holds is None
    assert common.Row("m", "o", "failed: no time left").holds is False


def test_ratios_are_of_the_same_round(common):
    times = common.Times({"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 4.0]})
    assert times.ratio("a", "b") == 2.0  # a slow round hits both
    assert times.over("a", "b") == 1.0
    assert times.ms("a") == 2.0


def test_functions_take_turns(common):
    seen = []
    works = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    common.interleaved(works, rounds=3, warmup=0)
    assert ["".join(seen[at : at + 3]) for at in (0, 3, 6)] == ["abc", "bca", "cab"]


def test_table_and_plots_stand_between_the_markers(common, run, tmp_path, monkeypatch, capsys):
    rows = [common.Row("ratio", "small", 1.5, 1.2, "x", least=True), common.Row("time", "", 3.0)]
    line = {"x": "tokens", "y": "ms", "lines": {"ours": [[64, 1.0], [128, 2.0]]}}
    monkeypatch.setattr(sys, "argv", ["one.py"])
    common.save("one", rows, tmp_path, series={"growth": line})
    common.save("two", [common.Row("late", "", "failed: RuntimeError: no")], tmp_path)
    (tmp_path / "other.json").write_text('[{"of": "another kind"}]', "utf-8")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{run.BEGIN}\nstale\n{run.END}\nafter\n", "utf-8")
    results = run.collected(tmp_path)
    for _ in range(2):
        run.publish(results, page, tmp_path / "plots")
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "1 of 2 bars hold" in text
    assert "| one | ratio | small | >= 1.2 x | 1.5 x | yes |" in text
    assert "| two | late |  |  | failed: RuntimeError: no | **no** |" in text
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["one_growth.svg"]
    assert "plots/one_growth.svg" in text


def test_every_benchmark_of_make_bench_is_a_file(run):
    assert [name for name in run.BENCHMARKS if not (FOLDER / f"{name}.py").is_file()] == []


def test_readmes_show_the_figures_that_are_kept(run):
    """After a benchmark ran alone: ``make bench ARGS=--collect``."""
    results = run.collected(FOLDER / "results")
    for page, middle in (
        (FOLDER.parent / "README.md", run.shown(results)),
        (FOLDER / "README.md", run.table_of(results)[0]),
    ):
        assert middle in page.read_text("utf-8"), page


def test_gpu_measures_run_over_tiny_models(gpu, measures):
    sizes = {"context": 24, "steps": 4, "batches": (2,), "growth": (16, 32)}
    stage = measures.Stage(gpu.PAIRS[0], "cpu", small=True, **sizes)
    names = ("eager", "graphs", "speculation", "batch", "growth", "prefill", "memory")
    rows = [row for name in names for row in gpu.run(stage, getattr(measures, name), 60)]
    stage.close()
    assert [row for row in rows if isinstance(row.measured, str)] == []
    (drafts,) = [row for row in rows if "accepted" in row.more]
    assert 0.4 <= drafts.more["accepted"] <= 1.0  # few tokens: the script says 0.7
    assert gpu.series_of(rows)["growth with context"]["lines"]


def test_a_measure_that_fails_or_takes_too_long_is_a_row(gpu, measures):
    stage = measures.Stage(gpu.PAIRS[0], "cpu", small=True)

    def broken(_):
        raise ValueError("no such thing\nand more")

    def slow(_):
        time.sleep(30)

    (failed,) = gpu.run(stage, broken, 5)
    (late,) = gpu.run(stage, slow, 0.1)
    assert failed.measured == "failed: ValueError: no such thing"
    assert late.measured.startswith("failed: TooLong")
    assert late.holds is False


@pytest.mark.slow
def test_the_whole_command_runs_small():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), "--small", "--device", "cpu"],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" not in done.stdout


def test_the_page_on_gates_has_the_figures_of_its_file(common):
    import gates

    fixed = {"prompts": list(gates.PROMPTS), "tokens": [gates.TOKENS, gates.SHORT]}
    store = gates.Store("gates", {**fixed, "judge": gates.JUDGE})
    page = (FOLDER.parent / "docs" / "gates.md").read_text("utf-8")
    assert len(store.rows) == len(gates.PAIRS) * (1 + len(gates.FUSIONS) * len(gates.GATES))
    assert [line for line in gates.summary(store) if line not in page] == []
