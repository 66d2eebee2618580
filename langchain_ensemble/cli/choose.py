"""``choose``: which of these candidates belong together, and whether it pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from langchain_ensemble.adapter.config import read_config, write_config
from langchain_ensemble.choose.members import choose_members
from langchain_ensemble.choose.report import Choice
from langchain_ensemble.choose.tables import absent, tables
from langchain_ensemble.cli.console import Bars, say_json, stdout
from langchain_ensemble.cli.options import read_members
from langchain_ensemble.errors import ConfigError

SUFFIXES = (".html", ".json", ".yaml")


def choose(
    members: Sequence[str] | None,
    config: Path | None,
    dev: Path,
    *,
    out: Sequence[Path],
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure, and write what was found.

    Args:
        members: ``name=id`` or ``id``, one a candidate.
        config: A configuration file with candidates and settings.
        dev: JSON lines.
        out: Files: the page (.html), the numbers (.json), the suggestion (.yaml).
        as_json: The numbers on stdout in place of tables.
        **settings: Of :func:`~langchain_ensemble.choose.members.choose_members`; None and ``[]``
            stand for "not given".

    Raises:
        ConfigError: No candidates, or a file whose kind is not known.
    """
    for path in out:
        if path.suffix not in SUFFIXES:
            raise ConfigError(
                f"--out {str(path)!r} must end in .html (a page), .json (all numbers) or .yaml "
                "(the suggestion, for -c)"
            )
        if not path.absolute().parent.is_dir():  # said before hours of measuring
            raise ConfigError(f"--out {str(path)!r} cannot be written: there is no such folder")
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    candidates, common = _read(members, config)
    with Bars() as bars:
        choice = choose_members(candidates, dev, on_progress=bars, **{**common, **given})
    if as_json:
        say_json(choice.to_dict())
    else:
        show(choice, stdout())
    for path in out:  # last: what cannot be written takes nothing else away
        _write(choice, path)


def _read(members: Sequence[str] | None, config: Path | None) -> tuple[Any, dict[str, Any]]:
    if bool(members) == (config is not None):
        raise ConfigError(
            "give candidates with -m name=id, one each, or a file with -c; not both, not neither"
        )
    if config is None:
        return read_members(members or []), {}
    common = read_config(config)
    candidates = common.pop("members", None)
    if candidates is None:
        raise ConfigError(f"the configuration {str(config)!r} has no members")
    for name, several in (("fusion", "fusions"), ("gate", "gates")):
        if name in common:
            common[several] = [common.pop(name)]
    return candidates, common


def _write(choice: Choice, path: Path) -> None:
    if path.suffix == ".html":
        choice.to_html(path)
    elif path.suffix == ".json":
        choice.to_json(path)
    else:
        write_config(path, choice.suggestion)


def show(choice: Choice, console: Console) -> None:
    """Write the tables and the verdict.

    Args:
        choice: The report.
        console: Where to.
    """
    for made in tables(choice):
        table = Table(title=made.title, caption=made.note or None)
        for place, name in enumerate(made.columns):
            table.add_column(name, justify="right" if place else "left")
        for row in made.rows:
            table.add_row(*row)
        console.print(table)
    for text in absent(choice):
        console.print(text, soft_wrap=True)
    console.print(f"\n{choice.verdict.sentence}", style="bold", soft_wrap=True)
