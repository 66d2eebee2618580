"""``calibrate``: how much each member counts, learned on a file of texts or questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose.calibrate import calibrate as learn
from langchain_ensemble.cli.console import Bars, say
from langchain_ensemble.cli.options import make
from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.evaluate.lines import json_lines
from langchain_ensemble.llms import EnsembleLLM

FIELDS = ("text", "prompt", "messages", "answer")


def calibrate(
    members: Sequence[str] | None,
    config: Path | None,
    dev: Path,
    *,
    chat: bool,
    method: str | None,
    metric: str | None,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn, and write what was found.

    Args:
        members: ``name=id`` or ``id``, one a member.
        config: A configuration file.
        dev: JSON lines.
        chat: Whether members read conversations in their own templates.
        method: As of ``calibrate``.
        metric: As of ``calibrate``.
        out: Where the calibration is written.
        as_json: The report as JSON on stdout in place of a table.
        **settings: Of the ensemble; None stands for "not given".

    Raises:
        ConfigError: A file that cannot be read, or settings that contradict each other.
    """
    kind: Any = ChatEnsemble if chat else EnsembleLLM
    llm = make(kind, members, config, **settings)
    given: dict[str, Any] = {
        name: value for name, value in (("method", method), ("metric", metric)) if value
    }
    dev_set = read_lines(dev, chat=chat)
    with llm, Bars() as bars:
        report = learn(llm, dev_set, file=out, on_progress=bars, **given)
    say(f"{report.to_json() if as_json else report}\n")


def read_lines(path: Path, *, chat: bool) -> list[Any]:
    """Read a dev set.

    Args:
        path: JSON lines: ``{"text": ...}``, ``{"prompt": ..., "answer": ...}``, or
            ``{"messages": [...], "answer": ...}``.
        chat: Whether a prompt is a user's message.

    Returns:
        What ``calibrate`` takes.

    Raises:
        ConfigError: The file cannot be read, or a line is none of these.
    """
    rows = json_lines(path, "dev set")
    return [_item(row, f"dev set {str(path)!r}, line {number}", chat) for number, row in rows]


def _item(row: Any, where: str, chat: bool) -> Any:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is {row!r:.80}; it must be an object with text, or answer")
    for name in row:
        if name not in FIELDS:
            raise ConfigError(f"{where}: {unknown_name('field', name, FIELDS)}")
    if set(row) == {"text"} and not chat:
        return row["text"]
    if set(row) == {"prompt", "answer"}:
        return row["prompt"], row["answer"]
    if set(row) == {"messages", "answer"} and chat:
        return row["messages"], row["answer"]
    wanted = "prompt or messages, and answer" if chat else "text alone, or prompt and answer"
    raise ConfigError(
        f"{where} has {', '.join(row) or 'nothing'}; it needs {wanted}"
        + ("" if chat or "messages" not in row else " (messages are for --chat)")
    )
