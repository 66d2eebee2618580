"""Every notebook runs from top to bottom and gives what is committed; one process each."""

from __future__ import annotations

import ast
import copy
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "cookbook").glob("*.ipynb"))
NAMES = [
    "01_quickstart",
    "02_rag",
    "03_agents_and_structured_output",
    "04_deepen_step_by_step",
    "05_your_own_fusion",
    "06_is_it_worth_it",
]


@pytest.fixture(scope="module")
def runner() -> Any:
    spec = spec_from_file_location("run_cookbook", ROOT / "tools/run_cookbook.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_the_notebooks_are_these():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_gives_what_is_committed(name):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/run_cookbook.py"), "--check", name],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_clean_complete_and_names_the_line_to_change(path, runner):
    notebook = read(path)
    nbformat.validate(notebook)
    assert runner.cleaned(copy.deepcopy(notebook)) == notebook
    assert notebook.cells[0].source.startswith("# ")
    assert "this is the one line to change" in "\n".join(c.source for c in notebook.cells)
    assert str(ROOT) not in path.read_text("utf-8")
    assert path.stat().st_size < 300_000
    for cell in runner.code_cells(notebook):
        assert bool(cell.outputs) == shows(cell.source), cell.source


def shows(source: str) -> bool:
    """Whether a cell prints, draws, or ends in a value."""
    last = ast.parse(source).body[-1]
    value = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
    return "print(" in source or (value and "unload()" not in source)


def test_a_trace_is_shown_without_its_times(runner):
    book = read(NOTEBOOKS[-1])
    outputs = [o for c in runner.code_cells(book) for o in c.outputs if "data" in o]
    (page,) = [o.data["text/html"] for o in outputs if "text/html" in o.data]
    assert "Peru" in page
    assert "&quot;ms&quot;:0," in page
    data = {"text/html": page.replace("&quot;ms&quot;:0,", "&quot;ms&quot;:1.25,")}
    told = nbformat.v4.new_output("display_data", data, metadata={})
    again = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("page", outputs=[told])])
    assert runner.cleaned(again).cells[0].outputs[0].data["text/html"] == page


def test_a_stale_output_is_found(runner):
    committed = read(NOTEBOOKS[0])
    again = copy.deepcopy(committed)
    assert runner.differences(committed, again) == []
    cells = [c for c in runner.code_cells(again) if c.outputs]
    cells[0].outputs = []
    assert len(runner.differences(committed, again)) == 1


def test_a_warning_of_ours_stops_the_run(runner, tmp_path):
    book = nbformat.v4.new_notebook()
    code = "import warnings, langchain_ensemble as e; warnings.warn('x', e.EnsembleWarning)"
    book.cells.append(nbformat.v4.new_code_cell(code))
    nbformat.write(book, tmp_path / "a.ipynb")
    with pytest.raises(RuntimeError, match=r"a\.ipynb warns"):
        runner.run(tmp_path / "a.ipynb")
