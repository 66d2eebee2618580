"""Plots of result files: small SVG pictures, one a series.

A result file names its plots itself under ``series``::

    {"growth with context": {"x": "tokens", "y": "ms a step", "log": True,
                             "lines": {"ours": [[64, 1.2], [512, 1.3]]}}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw every series of every result file.

    Args:
        results: Benchmark's name to its file's content.
        folder: Where the pictures go; those of series that are gone are removed.

    Returns:
        The pictures.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9})
    folder.mkdir(exist_ok=True)
    made = []
    for name, data in results.items():
        series = data.get("series", {}) if isinstance(data, dict) else {}
        for title, plot in series.items():
            stem = re.sub(r"[^a-z0-9]+", "_", f"{name} {title}".lower()).strip("_")
            made.append(_picture(title, plot, folder / f"{stem}.svg"))
    for path in folder.glob("*.svg"):
        if path not in made:
            path.unlink()
    return made


def _picture(title: str, plot: Mapping[str, Any], path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.2, 2.8), layout="constrained")
    for label, points in plot["lines"].items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    if plot.get("log"):
        axes.set_xscale("log", base=2)
    axes.set(title=title, xlabel=plot["x"], ylabel=plot["y"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(plot["lines"]) > 1:
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return path
