"""The findings as tables of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.choose.compare import System
from langchain_ensemble.choose.findings import Findings
from langchain_ensemble.choose.stats import Interval, risk_at


@dataclass(frozen=True)
class Table:
    """A table of text; all columns but the first hold numbers.

    Attributes:
        title: Above it.
        columns: Names.
        rows: Cells.
        note: Below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(found: Findings) -> list[Table]:
    """Give the tables of a report.

    Args:
        found: What was measured.

    Returns:
        Systems, pairs of candidates, ceilings and, where there are any, confidences.
    """
    made = [_systems(found), _pairs(found), _ceilings(found)]
    return [*made, _signals(found)] if found.signals else made


def absent(found: Findings) -> list[str]:
    """Say what was not measured, and why."""
    out = [f"candidate {name} was left out: {why}" for name, why in found.left_out.items()]
    return out + [f"{name} was not measured: {why}" for name, why in found.skipped.items()]


def _systems(found: Findings) -> Table:
    several = sum(system.kind == "ensemble" for system in found.systems)
    note = f"best candidate in the memory of the ensemble: {found.best_in_memory}"
    if several > 1:
        note += f"; intervals are corrected for {several} ensembles"
    if found.vram is not None:
        note += f"; vram {_size(found.vram)}"
    return Table(
        f"{len(found.questions)} questions, {100 * found.level:.4g} % intervals",
        (
            *("system", "right %", "interval", "against the best", "sign test p"),
            *("memory", "s / answer", "characters", "fused %"),
        ),
        tuple(_row(found, system) for system in found.systems),
        note,
    )


def _row(found: Findings, system: System) -> tuple[str, ...]:
    right = system.interval(found.level)
    contest = found.contests.get(system.name)
    against, p = "best single" if system.name == found.best else "", ""
    if contest is not None:
        mean, low, high = (100 * value for value in contest.difference)
        against, p = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", f"{contest.p:.3f}"
    return (
        _titled(system),
        _percent(right.mean),
        f"{_percent(right.low)} to {_percent(right.high)}",
        against,
        p,
        _size(system.memory),
        "" if system.seconds is None else f"{system.seconds:.2f}",
        f"{system.length:.0f}",
        "" if system.fused is None else f"{100 * system.fused:.0f}",
    )


def _size(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _titled(system: System) -> str:
    if system.kind == "self-consistency":
        return f"{system.settings['n']} {system.name} ({system.members[0]})"
    return system.name


def _pairs(found: Findings) -> Table:
    rows = tuple(
        (
            " / ".join(pair.names),
            f"{100 * pair.gap:.1f}",
            f"{pair.length_ratio:.2f}",
            _percent(pair.agreement),
            _percent(pair.first_word),
            _percent(pair.both_wrong),
        )
        for pair in found.pairs
    )
    taken = "which UniTE's rule calls compatible" if found.compatible else (
        "though UniTE's rule does not call them compatible"
    )  # fmt: skip
    together = f"{' + '.join(found.members)} were ensembled, {taken}"
    told = "; ".join(f"{name}: {why}" for name, why in found.reasons.items())
    note = together if len(found.members) > 1 else f"{found.members[0]} was not ensembled"
    return Table(
        "How alike candidates are",
        ("candidates", "gap", "length ratio", "same answer %", "same first word %", "both wrong %"),
        rows,
        f"{note} ({told})" if told else note,
    )


def _ceilings(found: Findings) -> Table:
    rows = tuple(
        (
            " + ".join(one.names),
            _percent(one.oracle),
            _percent(one.beta.mean),
            f"{_percent(one.beta.low)} to {_percent(one.beta.high)}",
        )
        for one in found.ceilings
    )
    return Table(
        "What no vote and no router can pass",
        ("candidates", "at least one right %", "all wrong %", "interval"),
        rows,
        "a policy that returns one of their answers is right at most where one of them is; fusion "
        "of tokens can say what none of them says",
    )


def _signals(found: Findings) -> Table:
    rows = []
    for one in found.signals:
        half = risk_at(one.risk_coverage, 0.5)
        area = ("-", "") if one.auroc is None else _area(one.auroc)
        rows.append((one.name, *area, _percent(half)))
    learned = any("learned" in one.name for one in found.signals)
    return Table(
        f"Which answers of {found.signals[0].of} are wrong?",
        ("confidence", "AUROC", "95 % interval", "wrong % of the surer half"),
        tuple(rows),
        "AUROC: how often a wrong answer has less confidence than a right one (0.5: no idea)"
        + ("; learned: by a map that has not seen the answer" if learned else ""),
    )


def _area(auroc: Interval) -> tuple[str, str]:
    return f"{auroc.mean:.3f}", f"{auroc.low:.3f} to {auroc.high:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def differing(found: Findings) -> Sequence[int]:
    """Numbers of the questions that the best ensemble and the best candidate answer unlike."""
    if not found.signals or found.signals[0].of == found.best:
        return ()
    ours, best = found.system(found.signals[0].of), found.system(found.best)
    pairs = zip(ours.right, best.right, strict=True)
    return [place for place, (one, other) in enumerate(pairs) if one != other]
