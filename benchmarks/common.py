"""What all benchmarks share: clocks, rounds, rows, results on disk.

A benchmark is a script that prints one table and writes ``benchmarks/results/<name>.json``::

    from common import Row, interleaved, one_thread, save

    one_thread()
    times = interleaved({"ours": step_ours, "naive": step_naive}, rounds=9)
    save("overhead", [
        Row("plain step over bare forwards", "64 tokens", times.over("ours", "bare"), 0.8, "ms"),
        Row("time of a step / naive loop", "4k, batch 8", times.ratio("ours", "naive"), 0.5, "x"),
        Row("tokens per second, batch 8 / 1", "256 x 4", 5.1, 4.0, "x", least=True),
        Row("a step", "4k", times.ms("ours"), unit="ms"),          # no bar: told, not judged
    ])

``python benchmarks/overhead.py`` puts this folder on the path; a test that loads a benchmark does
the same (``monkeypatch.syspath_prepend``). :mod:`toys` makes random models, scripted vocabularies
and ensembles of both. ``run.py`` collects all result files; it reads nothing but the keys of
:class:`Row`, and ``series`` where a plot wants them (``save(..., series={...})``).

Times: on a CPU with one thread the clock is the process's own CPU time, so that other work on the
machine counts little (``clock=time.perf_counter`` where threads or waiting are measured); on a GPU
it is the wall clock after a synchronisation. Ratios and differences are medians over rounds in
which every function ran once, in turns, so that a slow spell of the machine hits all of them.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[1].parent / "shared"
"""Where real tokenizers, models and texts lie, where they are at all."""


def one_thread() -> None:
    """Run torch on one thread, as every CPU figure here is measured."""
    torch.set_num_threads(1)


def machine() -> dict[str, Any]:
    """Say what the figures were measured on.

    Returns:
        Plain data for a result file.
    """
    import transformers

    return {
        "cpu": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def clock_of(device: str = "auto") -> Callable[[], float]:
    """Choose the clock of a device; see the module's docstring.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for what the machine has.

    Returns:
        A function that gives seconds.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@dataclass(frozen=True)
class Times:
    """Milliseconds of some functions, one entry a round.

    Attributes:
        rounds: Function's name to its milliseconds, round by round.
    """

    rounds: Mapping[str, Sequence[float]]

    def ms(self, name: str) -> float:
        """Median milliseconds of one function."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, *others: str) -> float:
        """Median over rounds of one function's time over the sum of others' in the same round."""
        below = zip(*(self.rounds[other] for other in others), strict=True)
        return statistics.median(
            own / sum(rest) for own, rest in zip(self.rounds[name], below, strict=True)
        )

    def over(self, name: str, *others: str) -> float:
        """Median over rounds of the milliseconds by which one function exceeds others' sum."""
        below = zip(*(self.rounds[other] for other in others), strict=True)
        return statistics.median(
            own - sum(rest) for own, rest in zip(self.rounds[name], below, strict=True)
        )


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int = 9,
    *,
    inner: int = 1,
    warmup: int = 1,
    clock: Callable[[], float] | None = None,
) -> Times:
    """Time functions in turns.

    Args:
        functions: Name to function; each call is one unit of work.
        rounds: How often each is timed; the order changes from round to round.
        inner: Calls of one timing; the milliseconds are per call.
        warmup: Calls before the first timing.
        clock: Seconds; default: :func:`clock_of`.

    Returns:
        The times.
    """
    now = clock or clock_of()
    for work in functions.values():
        for _ in range(warmup):
            work()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for number in range(rounds):
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            work = functions[name]
            start = now()
            for _ in range(inner):
                work()
            taken[name].append((now() - start) * 1e3 / inner)
    return Times(taken)


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        measure: What was measured.
        on: On what: sizes, contexts, batch.
        measured: The figure; a text (``"failed: ..."``) where there is none.
        bar: What it has to hold, None: nothing.
        unit: Of both.
        least: The bar is a lower bound.
        more: Further figures, for the result file only.
    """

    measure: str
    on: str
    measured: float | str
    bar: float | None = None
    unit: str = ""
    least: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the bar is held; None without a bar, False without a figure."""
        if isinstance(self.measured, str):
            return False
        if self.bar is None:
            return None
        return self.measured >= self.bar if self.least else self.measured <= self.bar

    def plain(self) -> dict[str, Any]:
        """The row as a result file has it."""
        measured = self.measured
        return {
            "measure": self.measure,
            "on": self.on,
            "bar": self.bar,
            "rule": None if self.bar is None else (">=" if self.least else "<="),
            "measured": measured if isinstance(measured, str) else float(f"{measured:.4g}"),
            "unit": self.unit,
            "holds": self.holds,
            **({"more": dict(self.more)} if self.more else {}),
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows (as :meth:`Row.plain` gives them) as a Markdown table.

    Args:
        rows: The rows.

    Returns:
        The table, without a newline at its end.
    """
    lines = ["| measure | on | bar | measured | holds |", "|---|---|---|---|---|"]
    for row in rows:
        unit = f" {row['unit']}" if row.get("unit") else ""
        bar = "" if row.get("bar") is None else f"{row.get('rule') or '<='} {row['bar']:g}{unit}"
        got = row["measured"]
        said = got if isinstance(got, str) else f"{got:.4g}{unit}"
        holds = {True: "yes", False: "**no**", None: ""}[row.get("holds")]
        lines.append(f"| {row['measure']} | {row['on']} | {bar} | {said} | {holds} |")
    return "\n".join(lines)


def save(name: str, rows: Sequence[Row], folder: Path | None = None, **more: Any) -> None:
    """Print the table of a benchmark and write its result file.

    Args:
        name: The file's name without ``.json``.
        rows: What was measured.
        folder: Where to; default: ``benchmarks/results``.
        more: Further keys of the file; ``series`` is what ``run.py`` draws:
            ``{plot: {"x": ..., "y": ..., "lines": {label: [[x, y], ...]}}}``.
    """
    plain = [row.plain() for row in rows]
    print(f"\n{name} on {platform.machine()}, {machine()['device']}\n{table(plain)}", flush=True)
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True, parents=True)
    command = "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    found = {"machine": machine(), "command": command, "rows": plain, **more}
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def peak_gib() -> float:
    """Greatest resident memory of this process so far, memory-mapped pages included."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
