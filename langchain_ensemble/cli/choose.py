"""``choose``: which of these candidates belong together, and whether it pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from langchain_ensemble.adapter.config import read_config, write_config
from langchain_ensemble.choose.compare import System
from langchain_ensemble.choose.members import choose_members
from langchain_ensemble.choose.report import Choice
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
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    candidates, common = _read(members, config)
    with Bars() as bars:
        choice = choose_members(candidates, dev, on_progress=bars, **{**common, **given})
    for path in out:
        _write(choice, path)
    if as_json:
        say_json(choice.to_dict())
    else:
        show(choice, stdout())


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
    try:
        if path.suffix == ".html":
            choice.to_html(path)
        elif path.suffix == ".json":
            choice.to_json(path)
        else:
            write_config(path, choice.suggestion)
    except OSError as error:
        raise ConfigError(f"cannot write --out {str(path)!r}: {error}") from error


def show(choice: Choice, console: Console) -> None:
    """Write the tables and the verdict.

    Args:
        choice: The report.
        console: Where to.
    """
    console.print(_systems(choice))
    console.print(_pairs(choice))
    for one in choice.ceilings:
        low, high = (100 * value for value in one.beta[1:])
        console.print(
            f"{' + '.join(one.names)}: at least one is right on {100 * one.oracle:.1f} %, all are "
            f"wrong on {100 * one.beta.mean:.1f} % ({low:.1f} to {high:.1f}): no choice among "
            f"their answers passes {100 * (1 - one.beta.mean):.1f} %"
        )
    if choice.signals:
        console.print(_signals(choice))
    for kind, told in (("candidate", choice.left_out), ("ensemble", choice.skipped)):
        for name, why in told.items():
            console.print(f"{kind} {name} was not measured: {why}")
    console.print(f"\n{choice.verdict.sentence}", style="bold", soft_wrap=True)


def _systems(choice: Choice) -> Table:
    table = Table(title=f"{len(choice.questions)} questions, {100 * choice.level:.4g} % intervals")
    for name in ("", "right %", "interval", "against the best", "sign test"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("GB", "s / answer", "characters", "fused %"):
        table.add_column(name, justify="right")
    for system in choice.systems:
        table.add_row(*_row(choice, system))
    return table


def _row(choice: Choice, system: System) -> list[str]:
    right = system.interval(choice.level)
    contest = choice.contests.get(system.name)
    against, p = "best single" if system.name == choice.best else "", ""
    if contest is not None:
        mean, low, high = (100 * value for value in contest.difference)
        against, p = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", f"{contest.p:.3f}"
    return [
        system.name,
        f"{100 * right.mean:.1f}",
        f"{100 * right.low:.1f} to {100 * right.high:.1f}",
        against,
        p,
        "?" if system.memory is None else f"{system.memory / 1e9:.2f}",
        "" if system.seconds is None else f"{system.seconds:.2f}",
        f"{system.length:.0f}",
        "" if system.fused is None else f"{100 * system.fused:.0f}",
    ]


def _pairs(choice: Choice) -> Table:
    table = Table(title="how alike candidates are")
    for name in ("", "gap", "length ratio", "same answer %", "same first word %", "both wrong %"):
        table.add_column(name, justify="left" if not name else "right")
    for pair in choice.pairs:
        table.add_row(
            " / ".join(pair.names),
            f"{100 * pair.gap:.1f}",
            f"{pair.length_ratio:.2f}",
            f"{100 * pair.agreement:.0f}",
            f"{100 * pair.first_word:.0f}",
            f"{100 * pair.both_wrong:.0f}",
        )
    rule = "compatible by UniTE's rule" if choice.compatible else "not compatible by UniTE's rule"
    told = "; ".join(f"{name}: {why}" for name, why in choice.reasons.items())
    table.caption = f"ensembled: {' + '.join(choice.members)}, {rule}" + (told and f" ({told})")
    return table


def _signals(choice: Choice) -> Table:
    table = Table(title=f"is the answer of {choice.signals[0].of} wrong?")
    for name in ("confidence", "AUROC", "wrong % of the surer half"):
        table.add_column(name, justify="left" if name == "confidence" else "right")
    for one in choice.signals:
        half = next(risk for coverage, risk in one.risk_coverage if coverage >= 0.5)
        area = "-" if one.auroc is None else f"{one.auroc:.3f}"
        table.add_row(one.name, area, f"{100 * half:.1f}")
    return table
