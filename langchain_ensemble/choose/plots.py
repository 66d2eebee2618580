"""Pictures of a choice as SVG texts, in the colours of the page around them.

matplotlib is an extra (``plots``); without it there are no pictures, and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_ensemble.choose.compare import System
from langchain_ensemble.choose.drawing import COLOURS, available, drawn
from langchain_ensemble.choose.findings import Findings
from langchain_ensemble.choose.stats import Interval

INK = "#010203"
"""Stands for the colour of text, and becomes the page's own."""

MARKERS = ("o", "s", "^", "D", "v", "P")
KINDS = {"candidate": 0, "self-consistency": 3, "vote": 4, "ensemble": 1}


def _drawn(draw: Callable[[Any], None], width: float, height: float) -> str:
    return drawn(draw, width, height, INK).replace(INK, "currentColor")


def accuracies(choice: Findings) -> str:
    """Draw every system's accuracy with its interval, and the ceiling of the members."""

    def draw(axes: Any) -> None:
        systems = choice.systems[::-1]
        for place, system in enumerate(systems):
            _bar(axes, place, system, system.interval(choice.level))
        axes.set_yticks(range(len(systems)), [_short(system.name) for system in systems])
        ceiling = choice.ceilings[0]
        axes.axvline(100 * ceiling.oracle, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            "any member right", (100 * ceiling.oracle, len(systems) - 0.45), ha="right", va="bottom"
        )
        axes.set(xlim=(0, 100), xlabel=f"right %, {100 * choice.level:.4g} % interval")
        axes.set_ylim(-0.6, len(systems) + 0.1)

    return _drawn(draw, 7, 1.2 + 0.42 * len(choice.systems))


def _bar(axes: Any, place: int, system: System, interval: Interval) -> None:
    mean, low, high = (100 * value for value in interval)
    kind = KINDS[system.kind]
    axes.errorbar(
        mean,
        place,
        xerr=[[mean - low], [high - mean]],
        fmt=MARKERS[kind],
        color=COLOURS[kind],
        capsize=3,
    )


def differences(choice: Findings) -> str:
    """Draw every system's difference to the best single candidate."""

    def draw(axes: Any) -> None:
        systems = [one for one in choice.systems if one.name in choice.contests][::-1]
        for place, system in enumerate(systems):
            _bar(axes, place, system, choice.contests[system.name].difference)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(systems)), [_short(system.name) for system in systems])
        axes.set_ylim(-0.6, len(systems) - 0.4)
        axes.set(xlabel=f"points above {choice.best}, bootstrap interval")

    return _drawn(draw, 7, 1.0 + 0.42 * len(choice.contests))


def _short(name: str) -> str:
    lines = name.replace(", ", ",\n").split("\n")
    return "\n".join(line if len(line) <= 34 else line[:33] + "…" for line in lines)


def _legend(axes: Any) -> None:
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def risk_coverage(choice: Findings) -> str:
    """Draw how many answers are wrong when only the surest are given."""

    def draw(axes: Any) -> None:
        for place, one in enumerate(choice.signals):
            share = [100 * coverage for coverage, _ in one.risk_coverage]
            risk = [100 * wrong for _, wrong in one.risk_coverage]
            axes.plot(share, risk, color=COLOURS[place % 6], marker=MARKERS[place % 6],
                      markersize=3, label=one.name)  # fmt: skip
        axes.set(xlim=(0, 101), ylim=(0, None), xlabel="answered %, the surest first")
        axes.set_ylabel("wrong % of those")
        _legend(axes)

    return _drawn(draw, 5.5, 4)


def reliability(choice: Findings) -> str:
    """Draw how often a confidence is right against what it says."""

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linestyle=":", linewidth=1)
        for place, one in enumerate(choice.signals):
            said = [100 * confidence for confidence, _, _ in one.reliability]
            right = [100 * share for _, share, _ in one.reliability]
            size = [10 + 3 * count for _, _, count in one.reliability]
            colour, marker = COLOURS[place % 6], MARKERS[place % 6]
            axes.scatter(said, right, s=size, color=colour, marker=marker, label=one.name)
        axes.set(xlim=(-2, 102), ylim=(-4, 104), xlabel="confidence %", ylabel="right %")
        _legend(axes)

    return _drawn(draw, 5.5, 4)


def pictures(choice: Findings) -> Sequence[tuple[str, str]]:
    """Draw everything.

    Args:
        choice: The report.

    Returns:
        ``(what it shows, SVG)``; nothing without matplotlib.
    """
    if not available():
        return ()
    made = [("Accuracy of each system, with exact intervals", accuracies(choice))]
    if choice.contests:
        made.append((f"Difference to {choice.best}, the best alone", differences(choice)))
    if choice.signals:
        made.append(("Wrong answers among the surest", risk_coverage(choice)))
        made.append(("Confidence against share right", reliability(choice)))
    return made
