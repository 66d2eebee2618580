"""``python -m langchain_ensemble.evaluate``: the papers' rows, each member's own number beside."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose.stats import paired_bootstrap
from langchain_ensemble.errors import ConfigError, EnsembleError
from langchain_ensemble.evaluate.running import Model, Result, evaluate
from langchain_ensemble.evaluate.tasks import PAPERS, paper_task
from langchain_ensemble.llms import EnsembleLLM


def parser() -> argparse.ArgumentParser:
    """Make the reader of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m langchain_ensemble.evaluate", description=__doc__
    )
    made.add_argument("tasks", nargs="+", choices=sorted(PAPERS), metavar="task")
    made.add_argument("--data", required=True, help="folder with prompts.json and the questions")
    made.add_argument("-c", "--config", required=True, help="members and settings, YAML")
    made.add_argument("--chat", action="store_true", help="prompts are messages (ChatEnsemble)")
    made.add_argument("--limit", type=int, help="the first so many questions")
    made.add_argument("--batch", type=int, default=16, help="questions answered together")
    made.add_argument("--letters", choices=["generate", "score"], default="generate")
    made.add_argument("--no-members", action="store_true", help="the ensemble only")
    made.add_argument("--out", type=Path, help="folder for every answer, JSON lines")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: In place of the process's own.

    Returns:
        The exit status: 2 where what was asked for cannot be, 1 where something else went wrong.
    """
    asked = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that it cannot write ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        if asked.out is not None:
            _make(asked.out)
        kind = ChatEnsemble if asked.chat else EnsembleLLM
        with kind.from_config(asked.config) as llm:
            sys.stdout.write(HEAD)
            for name in asked.tasks:
                sys.stdout.write(_rows(llm, name, asked))
                sys.stdout.flush()
    except EnsembleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _make(folder: Path) -> None:
    """Make the folder for the answers, before hours of work and not behind them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {str(folder)!r}: {error}") from error


def _as_file(name: str) -> str:
    """A member's name as a part of a file's, on every system."""
    return re.sub(r"[^\w.+-]", "_", name)


HEAD = (
    "| task | who | right | of | accuracy | 95 % | not answered |\n"
    "|---|---|---:|---:|---:|---|---:|\n"
)


def _rows(llm: Model, name: str, asked: argparse.Namespace) -> str:
    """A task's rows of the table: members, ensemble, and what it gains over the best of them."""
    task = paper_task(name, asked.data)
    names = [] if asked.no_members else llm.params.names
    models: list[Model] = [*(llm.solo(one) for one in names), llm]
    results = [
        evaluate(
            model,
            task,
            limit=asked.limit,
            letters=asked.letters,
            batch=asked.batch,
            on_progress=_progress,
        )
        for model in models
    ]
    if asked.out is not None:
        for who, result in zip([*names, "ensemble"], results, strict=True):
            result.write(asked.out / f"{name}-{_as_file(who)}.jsonl")
    lines = [
        _line(who, result) for who, result in zip([*names, llm.model_name], results, strict=True)
    ]
    if names:
        lines.append(_gain(names, results))
    return "".join(lines)


def _line(who: str, result: Result) -> str:
    right, interval = sum(item.right for item in result.items), result.interval
    return (
        f"| {result.task} | {who} | {right} | {len(result.items)} | {100 * interval.mean:.2f} | "
        f"{100 * interval.low:.2f} to {100 * interval.high:.2f} | {len(result.errors)} |\n"
    )


def _gain(names: Sequence[str], results: Sequence[Result]) -> str:
    """Ensemble minus the best member, on the same questions."""
    *alone, ensemble = results
    best = max(alone, key=lambda result: result.accuracy)
    ours, theirs = ([item.right for item in result.items] for result in (ensemble, best))
    gain = paired_bootstrap(ours, theirs)
    return (
        f"| {ensemble.task} | minus {names[alone.index(best)]} | {sum(ours) - sum(theirs)} | "
        f"{len(ours)} | {100 * gain.mean:+.2f} | {100 * gain.low:+.2f} to {100 * gain.high:+.2f} "
        "| |\n"
    )


def _progress(task: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{task} {done}/{total}" + ("\n" if done == total else ""))


if __name__ == "__main__":
    sys.exit(main())
