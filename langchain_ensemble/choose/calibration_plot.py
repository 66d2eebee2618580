"""The picture of a calibration: bits per byte against the weight of one of two members.

matplotlib is an extra (``plots``), imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import StringIO
from itertools import pairwise
from typing import Any

from langchain_ensemble.errors import ConfigError

CURVE, MARK = "#3b82c4", "#d1602f"
"""Read on white and on black alike."""

GREY = "#808080"


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
    if find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib: pip install 'langchain-ensemble[plots]'")
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "langchain-ensemble",  # the same picture for the same numbers
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    style |= {
        name: GREY
        for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color",
                     "ytick.color")
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*curve, strict=True), color=CURVE)
        for text, weight in marks:
            bits = _at(curve, weight)
            axes.plot([weight], [bits], marker="o", color=MARK)
            axes.annotate(f"{text} {bits:.3f}", (weight, bits), xytext=(0, 14),
                          textcoords="offset points", ha="center")  # fmt: skip
        axes.margins(y=0.15)
        axes.set(
            xlabel=f"weight of {names[0]}; the rest is {names[1]}'s",
            ylabel="bits per byte, held out",
        )
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _at(curve: Sequence[tuple[float, float]], weight: float) -> float:
    """The curve between its points."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= weight <= right:
            return low + (high - low) * (weight - left) / (right - left)
    return curve[-1][1]
