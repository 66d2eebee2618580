"""Run the cookbook's notebooks and keep what they print; ``make cookbook``.

    python tools/run_cookbook.py            # run all, write their outputs
    python tools/run_cookbook.py --check 01 # run one, compare with the outputs that are committed

What is written has no times, no ids of the run and no names of machines, so that a notebook changes
only where it prints something else. Texts are compared exactly (decoding is greedy), of pictures
and pages only that they are there. What libraries write on stderr while they load is left out; a
warning of this package there is a failure.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

COOKBOOK = Path(__file__).resolve().parents[1] / "cookbook"
SECONDS = 120

TIMES = re.compile(r"(?<=&quot;ms&quot;:)[\d.]+|(?<=&lt;dd&gt;)[\d.]+(?= ms)")
"""Milliseconds on a trace's page, as they stand in the frame that shows it."""


def run(path: Path) -> Any:
    """Run a notebook from top to bottom in a process of its own.

    Args:
        path: The notebook.

    Returns:
        The notebook with what it gave, cleaned.
    """
    notebook = nbformat.read(path, as_version=4)
    no_ports = Config({"KernelManager": {"transport": "ipc"}})
    NotebookClient(notebook, config=no_ports, timeout=SECONDS, kernel_name="python3").execute()
    warned = [text for texts in said(notebook) for text in texts if "EnsembleWarning" in text]
    if warned:
        raise RuntimeError(f"{path.name} warns: {warned}")
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Leave out what changes from run to run; number cells from 1; join what one stream printed."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
    for number, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = number
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            output.pop("metadata", None)
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = TIMES.sub("0", output.data["text/html"])
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = {}
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """One output for stdout, however it was cut into messages; none for stderr."""
    printed: Any = None
    kept = []
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif output.name == "stdout" and printed is not None:
            printed.text += output.text
        elif output.name == "stdout":
            printed = output
            kept.append(output)
    return kept


def code_cells(notebook: Any) -> list[Any]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook: Any) -> list[list[str]]:
    """What each code cell gave: texts as they are, of pictures the kind.

    Args:
        notebook: With outputs.

    Returns:
        [cell][output].
    """
    return [[_told(output) for output in cell.outputs] for cell in code_cells(notebook)]


def _told(output: Any) -> str:
    if output.output_type == "stream":
        return f"{output.name}: {output.text}"
    data = output.data
    return "image/png" if "image/png" in data else str(data.get("text/plain"))


def differences(before: Any, now: Any) -> list[str]:
    """Say where a run gave something else than what is committed.

    Args:
        before: The notebook as it is committed.
        now: As it ran.
    """
    pairs = zip(said(before), said(now), strict=True)
    return [
        f"code cell {number}: committed {old!r}, now {new!r}"
        for number, (old, new) in enumerate(pairs, 1)
        if old != new
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run notebooks; write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="how their names begin; default: all")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args(arguments)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = sorted(COOKBOOK.glob("*.ipynb"))
    wanted = [p for p in paths if not given.names or p.name.startswith(tuple(given.names))]
    if not wanted:
        parser.error(f"no notebook begins with {given.names}; there are {[p.name for p in paths]}")
    wrong: list[str] = []
    for path in wanted:
        again = run(path)
        if given.check:
            found = differences(nbformat.read(path, as_version=4), again)
            wrong += [f"{path.name}, {text}" for text in found]
        else:
            nbformat.write(again, path)
        print(f"ran {path.name}")
    if wrong:
        print(*wrong, sep="\n")
        print("if that is meant: make cookbook, read what it changed, and commit it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
