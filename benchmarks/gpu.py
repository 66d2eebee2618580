"""Everything on one GPU, in ten minutes: eager, graphs, compiled, drafts, batches, fusions, memory.

Members have the real shapes of Llama-3.1-8B + Qwen2.5-7B and of Llama-2-13B + Mistral-7B, random
bfloat16 weights made on the device, and vocabularies of real size (the shared tokenizers, or
scripted ones where they are absent), aligned by the real code. A measure that fails is a row that
says why; a measure that takes too long is broken off; when the time is up the rest is left out.
vLLM and SGLang run main alone where they are installed.

Run from the repository's root on a machine with one H200-class GPU: ``python benchmarks/gpu.py``.
It prints one table and writes ``benchmarks/results/gpu.json``. ``--small`` runs the same code with
tiny models, on the CPU if need be; it writes nothing unless ``--out`` is given.
"""

from __future__ import annotations

import argparse
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Row, machine, one_thread, save, table
from gpu_engines import sglang_alone, vllm_alone
from gpu_measures import (
    batch,
    compiled,
    eager,
    graphs,
    growth,
    memory,
    prefill,
    prefix,
    share,
    speculation,
    twins,
)
from gpu_stage import Stage

Measure = Callable[[Stage], list[Row]]
FIRST: tuple[tuple[Measure, int], ...] = (
    (eager, 90),
    (graphs, 60),
    (speculation, 30),
    (batch, 60),
    (share, 120),
    (twins, 60),
    (growth, 45),
    (prefill, 30),
    (prefix, 30),
    (memory, 5),
    (vllm_alone, 120),
    (sglang_alone, 120),
    (compiled, 240),
)
"""What the first pair is measured by, and the most seconds that each may take."""

SECOND: tuple[tuple[Measure, int], ...] = (
    (eager, 60),
    (graphs, 40),
    (speculation, 20),
    (memory, 5),
)
RESERVE = 90
"""Seconds that the first pair leaves for the second; the compiler may take all others."""

PAIRS = (("Llama-3.1-8B", "Qwen2.5-7B"), ("Llama-2-13B", "Mistral-7B"))


class TooLong(Exception):
    """A measure's time is up."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooLong` in this thread after so many seconds."""

    def ring(*_: object) -> None:
        raise TooLong(f"broken off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(stage: Stage, measure: Measure, seconds: float, *, verbose: bool = False) -> list[Row]:
    """Run one measure; what goes wrong is a row."""
    start = time.perf_counter()
    try:
        with limit(seconds):
            rows = measure(stage)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        said = (str(error).splitlines() or [""])[0][:160]
        rows = [Row(measure.__name__, stage.on, f"failed: {type(error).__name__}: {said}")]
    print(f"{measure.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
    return rows


def stages(given: argparse.Namespace) -> Iterator[tuple[Stage, tuple[tuple[Measure, int], ...]]]:
    """The pairs in order, each with its measures; a pair is freed before the next is made."""
    sizes: dict[str, Any] = {}
    if given.small:
        sizes = {"context": 48, "steps": 6, "batches": (2, 3), "growth": (32, 96)}
    for names, measures in zip(PAIRS, (FIRST, SECOND), strict=True):
        stage = Stage(names, given.device, given.small, **sizes)
        yield stage, measures
        stage.close()


def series_of(rows: list[Row]) -> dict[str, Any]:
    """What is drawn: a step at longer contexts."""
    lines: dict[str, list[list[float]]] = {}
    for row in rows:
        pair, _, context = row.on.partition(", context ")
        if context and isinstance(row.measured, float):
            lines.setdefault(pair, []).append([float(context), row.measured])
    plot = {"x": "tokens of context", "y": "ms a step", "log": True, "lines": lines}
    return {"growth with context": plot} if lines else {}


def wanted(given: argparse.Namespace) -> list[str]:
    """Names of the measures to run: all, but no compiler on a CPU, where it takes minutes."""
    names = [measure.__name__ for measure, _ in (*FIRST, *SECOND)]
    return [name for name in names if given.device != "cpu" or name != "compiled"]


def main() -> None:
    """Measure all; print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny models: a test of this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=570.0, help="for everything")
    parser.add_argument("--only", action="append", help="names of measures")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of what fails")
    given = parser.parse_args()
    if given.device == "cpu" and not given.small:
        raise SystemExit("no GPU here; --small runs the same code with tiny models on the CPU")
    if given.device == "cpu":
        one_thread()
    end = time.perf_counter() + given.seconds
    rows: list[Row] = []
    for stage, measures in stages(given):
        reserve = RESERVE if measures is FIRST else 0
        for measure, seconds in measures:
            if measure.__name__ not in (given.only or wanted(given)):
                continue
            left = end - time.perf_counter() - reserve
            if left < 5:
                rows.append(Row(measure.__name__, stage.on, "failed: no time left"))
                continue
            rows += run(stage, measure, min(seconds, left), verbose=given.verbose)
    if given.small and given.out is None:
        print(f"\nsmall, on {machine()['device']}\n{table([row.plain() for row in rows])}")
        return
    save("gpu", rows, given.out or RESULTS, small=given.small, series=series_of(rows))


if __name__ == "__main__":
    main()
