"""The picture of a calibration: bits per byte against the weight of one of two members.

matplotlib is an extra (``plots``), imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from langchain_ensemble.choose.drawing import COLOURS, available, drawn
from langchain_ensemble.errors import ConfigError

GREY = "#767676"
"""Read on white and on black alike."""


def draw_curve(
    curve: Sequence[tuple[float, float]], names: Sequence[str], marks: Sequence[tuple[str, float]]
) -> str:
    """Draw bits per byte against the weight of the first of two members.

    Args:
        curve: (weight of the first member, bits per byte).
        names: The two members.
        marks: (what it is called, weight of the first member) of what is marked on the curve.

    Returns:
        The SVG's text.

    Raises:
        ConfigError: There is no curve, or matplotlib is missing.
    """
    if not curve:
        raise ConfigError(
            f"a curve over one weight needs two members; this calibration has {len(names)}"
        )
    if not available():
        raise ConfigError("pictures need matplotlib: pip install 'langchain-ensemble[plots]'")

    def draw(axes: Any) -> None:
        axes.plot(*zip(*curve, strict=True), color=COLOURS[0])
        for text, weight in marks:
            bits = _at(curve, weight)
            axes.plot([weight], [bits], marker="o", color=COLOURS[1])
            axes.annotate(f"{text} {bits:.3f}", (weight, bits), xytext=(0, 14),
                          textcoords="offset points", ha="center")  # fmt: skip
        axes.margins(y=0.15)
        axes.set(
            xlabel=f"weight of {names[0]}; the rest is {names[1]}'s",
            ylabel="bits per byte, held out",
        )

    return drawn(draw, 6, 3.4, GREY)


def _at(curve: Sequence[tuple[float, float]], weight: float) -> float:
    """The curve between its points."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= weight <= right:
            return low + (high - low) * (weight - left) / (right - left)
    return curve[-1][1]
