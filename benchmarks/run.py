"""Run the benchmarks of speed one after the other, and write one table and the plots.

Each runs in a process of its own with one thread and a limit of time. What they wrote to
``results/*.json`` is collected (``gpu.json`` too, where somebody has run ``gpu.py``), printed as
one table, put between the markers of ``README.md`` in this folder, and drawn into ``plots/*.svg``.
A few rows go into the package's README as well.

``python benchmarks/run.py`` takes about twelve minutes on two cores; ``--collect`` runs nothing.
Benchmarks of quality and the older ones of memory take longer and are run by hand: see the README.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plots import draw

HERE = Path(__file__).parent
BENCHMARKS = (
    "overhead",
    "naive_loop",
    "growth",
    "deepen_search",
    "speculation",
    "assisted",
    "concurrency",
    "pool",
    "prefix",
    "prefill",
    "memory",
)
"""What ``make bench`` runs, in this order."""

SHOWN: tuple[tuple[str, str, str], ...] = (
    ("overhead", "overhead of a plain fused step", "2048"),
    ("naive_loop", "", "batch 1"),
    ("naive_loop", "", "batch 8"),
    ("speculation", "forwards a token, drafts", "2 members, acceptance 0.7"),
    ("growth", "batch 8", ""),
    ("concurrency", "8 invoke / 1 invoke", ""),
    ("prefix", "history known / ", ""),
    ("deepen_search", "dense step / ours", " 50 support"),
    ("deepen_search", "dense step / ours", " 200 support"),
    ("assisted", "ours / assisted", "bitllama-1M <- stories260K"),
    ("assisted", "ours compiled / assisted", "bitllama-1M <- stories260K"),
    ("memory", "relative representations", ""),
    ("gpu", "plain step, graphs", "Llama-3.1-8B"),
    ("gpu", "two equal members / main alone", ""),
)
"""Rows that the package's README shows: benchmark, and parts of ``measure`` and ``on``."""

SECONDS = 420
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def rows_of(name: str, data: Any) -> Iterator[dict[str, Any]]:
    """Rows of a result file: whatever has a bar, a figure and whether it holds.

    Args:
        name: The benchmark's, for rows that say nothing else.
        data: The file's content, or a part of it.

    Yields:
        Rows with ``measure``, ``on``, ``bar``, ``measured``, ``holds``.
    """
    if isinstance(data, dict) and {"bar", "measured", "holds"} <= data.keys():
        yield {"measure": name, "on": "", "unit": "", **data}
        return
    inner: Any = data.values() if isinstance(data, dict) else data
    if isinstance(inner, (list, type({}.values()))):
        for part in inner:
            yield from rows_of(name, part)


def told(value: Any, unit: str) -> str:
    """A figure or a bar as the table has it."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.4g} {unit}".strip()
    if isinstance(value, Mapping):
        return "; ".join(f"{k} {told(v, '')}" for k, v in value.items() if v is not None)
    return str(value)


def table_of(results: Mapping[str, Any]) -> tuple[str, int, int]:
    """One table of all result files.

    Args:
        results: Benchmark's name to its file's content.

    Returns:
        Markdown; how many bars there are, and how many of them hold.
    """
    lines = ["| benchmark | measure | on | bar | measured | holds |", "|---|---|---|---|---|---|"]
    bars = held = 0
    for name, data in results.items():
        for row in rows_of(name, data):
            unit, rule = str(row.get("unit") or ""), row.get("rule")
            bar = told(row["bar"], unit)
            if bar and isinstance(row["bar"], (int, float)):
                bar = f"{rule or '<='} {bar}"
            judged = row["holds"] is not None
            bars, held = bars + judged, held + (row["holds"] is True)
            says = ("yes" if row["holds"] else "**no**") if judged else ""
            cells = (name, row["measure"], row["on"], bar, told(row["measured"], unit), says)
            lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines), bars, held


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: Its file's name.
        folder: Where results lie.

    Returns:
        What it wrote; a row that says how it failed, if it did.
    """
    print(f"== {name}", flush=True)
    start, path = time.perf_counter(), folder / f"{name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    begun, failed = time.time(), ""
    try:
        command = [sys.executable, str(HERE / f"{name}.py")]
        done = subprocess.run(
            command, env=environment, timeout=SECONDS, capture_output=True, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            failed = f"failed: exit status {done.returncode}"
            print(done.stderr[-2000:], file=sys.stderr)
    except subprocess.TimeoutExpired:
        failed = f"failed: more than {SECONDS} s"
    print(f"   {time.perf_counter() - start:.0f} s {failed}", flush=True)
    if not path.exists() or path.stat().st_mtime < begun - 1:
        return {"bar": None, "measured": failed or "failed: wrote nothing", "holds": False}
    data = json.loads(path.read_text("utf-8"))
    return data if isinstance(data, dict) else {"rows": data}


def collected(folder: Path) -> dict[str, Any]:
    """All result files that have rows, those of :data:`BENCHMARKS` first."""
    found = sorted(path.stem for path in folder.glob("*.json"))
    order = [n for n in BENCHMARKS if n in found] + [n for n in found if n not in BENCHMARKS]
    results = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in order}
    return {name: data for name, data in results.items() if any(rows_of(name, data))}


def shown(results: Mapping[str, Any]) -> str:
    """The few rows that the package's README shows.

    Args:
        results: Benchmark's name to its file's content.

    Returns:
        Markdown; a row that no file has is left out.
    """
    lines = ["| measure | on | bar | measured |", "|---|---|---|---|"]
    for name, measure, on in SHOWN:
        for row in rows_of(name, results.get(name, [])):
            if measure not in row["measure"] or on not in row["on"] or row["bar"] is None:
                continue
            unit = str(row.get("unit") or "")
            bar = f"{row.get('rule') or '<='} {told(row['bar'], unit)}"
            missed = "" if row["holds"] else ", **missed**"
            got = f"{told(row['measured'], unit)}{missed}"
            lines.append(f"| {row['measure']} | {row['on']} | {bar} | {got} |")
            break
    return "\n".join(lines)


def put(page: Path, middle: str) -> None:
    """Put a text between the markers of a page."""
    text = page.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{middle}\n{END}{after}", "utf-8")


def publish(results: Mapping[str, Any], readme: Path, plots: Path) -> str:
    """Write the table and the plots into a README, between its markers.

    Args:
        results: Benchmark's name to its file's content.
        readme: The page; its markers stay.
        plots: Folder of the plots, beside it.

    Returns:
        What stands between the markers now.
    """
    table, bars, held = table_of(results)
    said = f"{held} of {bars} bars hold in the result files that are kept here."
    machines = {
        name: f"{m.get('cpu') or m.get('machine')}, {m.get('device', 'cpu')}"
        for name, data in results.items()
        if isinstance(data, dict) and isinstance(m := data.get("machine"), dict)
    }
    where = "; ".join(sorted(set(machines.values())))
    pictures = [f"![{path.stem}](plots/{path.name})" for path in draw(results, plots)]
    middle = "\n\n".join([f"{said} Machines: {where}.", table, " ".join(pictures)]).strip()
    put(readme, middle)
    return middle


def main() -> int:
    """Run, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run; default: all of speed")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    given = parser.parse_args()
    folder = HERE / "results"
    failed: dict[str, Any] = {}
    for name in () if given.collect else given.names or BENCHMARKS:
        data = run(name, folder)
        if data.get("measured") and str(data["measured"]).startswith("failed"):
            failed[name] = data
    results = {**collected(folder), **failed}
    print(publish(results, HERE / "README.md", HERE / "plots"))
    put(HERE.parent / "README.md", shown(results))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
