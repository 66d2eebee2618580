"""One set of axes as the text of an SVG.

matplotlib is an extra (``plots``), imported when a picture is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from io import StringIO
from typing import Any

COLOURS = ("#3b82c4", "#d1602f", "#2f9e6e", "#9a6bc9", "#b8860b", "#c2476f")
"""Read on white and on black alike."""

INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color",
         "grid.color")  # fmt: skip


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def drawn(draw: Callable[[Any], None], width: float, height: float, ink: str) -> str:
    """Draw on one set of axes.

    Args:
        draw: Takes the axes.
        width: In inches.
        height: In inches.
        ink: Colour of text and axes.

    Returns:
        The SVG's text; the same for the same numbers.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "langchain-ensemble",
        "text.parse_math": False,  # a name with dollars in it is no formula
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(INKED, ink),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # whoever shows the text has it
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
