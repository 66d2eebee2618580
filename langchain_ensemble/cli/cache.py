"""``cache``: warm, list, verify and clear what fusions keep on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from langchain_ensemble.cli.console import BAD, GOOD, Bars, say, size_text, stdout
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.store import Store


def warm(llm: EnsembleLLM) -> None:
    """Load an ensemble once, so that what its fusion needs is on disk.

    Args:
        llm: The ensemble.
    """
    store = Store()
    before = [entry.path for entry in store.list()]
    with llm, Bars() as bars:
        llm.engine.load(bars)
    new = [entry for entry in store.list() if entry.path not in before]
    if new:
        size = size_text(sum(entry.size for entry in new))
        say(f"{len(new)} new entries, {size}, in {store.folder}\n")
    else:
        say(f"nothing new: {llm.model_name} has what it needs, or keeps nothing on disk\n")


def show_list() -> None:
    """Write a table of the entries."""
    store = Store()
    entries = store.list()
    if not entries:
        say(f"no entries in {store.folder}\n")
        return
    table = Table(title=f"{store.folder}", title_justify="left", box=None)
    for column in ("entry", "size", "what"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for entry in entries:
        table.add_row(entry.path.stem[:12], size_text(entry.size), _what(entry.key))
    stdout().print(table)
    say(f"{len(entries)} entries, {size_text(sum(entry.size for entry in entries))}\n")


def _what(key: Mapping[str, Any]) -> str:
    """A key in short: hashes cut, the kind first."""
    if not key:
        return "cannot be read"
    parts = [str(key.get("kind", ""))]
    parts += [
        f"{name}={str(value)[:12]}" for name, value in key.items() if name not in ("kind", "format")
    ]
    return " ".join(part for part in parts if part)


def verify() -> int:
    """Check every entry from end to end.

    Returns:
        The exit code: 1 where one is bad.
    """
    store = Store()
    checked = store.verify()
    bad = [(entry, problem) for entry, problem in checked if problem is not None]
    for entry, problem in bad:
        say(f"bad: {entry.path}: {problem}\n")
    say(f"{len(checked) - len(bad)} good, {len(bad)} bad in {store.folder}\n")
    if bad:
        say("a bad entry is removed and built again when it is next needed\n")
    return BAD if bad else GOOD


def clear() -> None:
    """Remove every entry."""
    store = Store()
    count = len(store.list())
    freed = store.clear()
    say(f"removed {count} entries, {size_text(freed)}, from {store.folder}\n")
