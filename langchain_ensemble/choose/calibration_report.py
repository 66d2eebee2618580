"""What ``calibrate`` found: weights, bits per byte on texts that taught nothing, a verdict."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from langchain_ensemble.choose.calibration_plot import draw_curve
from langchain_ensemble.choose.findings import save
from langchain_ensemble.choose.stats import Interval

Method = Literal["learned", "adapt", "uniform"]


@dataclass(frozen=True)
class Fit:
    """How learned weights were found.

    Attributes:
        evaluations: Points of the simplex that were looked at.
        gap: Bits per byte by which other weights can be better on the texts that taught, at most;
            None where the objective is not convex and nobody knows.
        converged: Whether the search ended because the gap was small enough.
        read_again: Texts that did not fit in memory and were read at every point.
    """

    evaluations: int
    gap: float | None
    converged: bool
    read_again: int


@dataclass(frozen=True)
class CalibrationReport:
    """What a dev set says about the weights of an ensemble.

    All bits per byte are of the half of the texts that taught nothing.

    Attributes:
        method: Where the weights come from.
        weights: Name → weight.
        fusion: The fusion's name.
        main: Main's name.
        members: Name → bits per byte with all weight on that member, under the same fusion.
        uniform: Bits per byte with uniform weights.
        fitted: Bits per byte with ``weights``.
        best: The member that is best alone.
        against_best: Share of the best member's bits that ``weights`` save, with its interval.
        against_uniform: Share of uniform weights' bits that ``weights`` save.
        uniform_against_best: Share of the best member's bits that uniform weights save.
        texts: Texts that taught, and texts that tested.
        num_bytes: Their bytes.
        fit: How the weights were found; None where nothing was searched.
        right: Name → share of right answers of the half that taught, with ``method="adapt"``.
        confidence: The map from features to how sure an answer is, as the file holds it.
        confidence_auroc: How well that map ranks answers of the half that taught nothing; None
            where all of them were right or all wrong.
        curve: (weight of the first member, bits per byte) of two members, for the picture.
    """

    method: Method
    weights: Mapping[str, float]
    fusion: str
    main: str
    members: Mapping[str, float]
    uniform: float
    fitted: float
    best: str
    against_best: Interval
    against_uniform: Interval
    uniform_against_best: Interval
    texts: tuple[int, int]
    num_bytes: tuple[int, int]
    fit: Fit | None = None
    right: Mapping[str, float] | None = None
    confidence: Mapping[str, Any] | None = None
    confidence_auroc: float | None = None
    curve: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> str:
        """One sentence, also where the weights, or the ensemble, are not worth it."""
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        alone = f"{self.best!r} alone ({self.members[self.best]:.3f} bits per byte)"
        if self.against_best.low <= 0:
            so = "worse than" if self.against_best.high < 0 else "no better than"
            return (
                f"Use {alone}: with the weights {told} the members together are {so} it on this "
                f"text, {_saved(self.against_best)}."
            )
        if self.method == "uniform":
            return f"Uniform weights save {_saved(self.against_best)} against {alone}."
        if self.against_uniform.low <= 0 and self.uniform_against_best.low > 0:
            return (
                f"Uniform weights are as good: these ({told}) save {_saved(self.against_uniform)} "
                f"against them, and uniform ones save {_saved(self.uniform_against_best)} against "
                f"{alone}."
            )
        return (
            f"The weights {told} save {_saved(self.against_best)} against {alone} and "
            f"{_saved(self.against_uniform)} against uniform weights."
        )

    def to_json(self) -> str:
        """Give everything as JSON."""
        return json.dumps({**asdict(self), "verdict": self.verdict}, indent=1, ensure_ascii=False)

    def plot(self, path: str | Path | None = None) -> str:
        """Draw bits per byte against the weight of the first of two members, as SVG.

        Args:
            path: Also write it there.

        Returns:
            The SVG's text.

        Raises:
            ConfigError: Not two members, no matplotlib (the extra ``plots``), or it cannot be
                written there.
        """
        names = list(self.weights)
        marks = (
            [("uniform", 0.5)]
            if self.method == "uniform"
            else [(self.method, self.weights[names[0]])]
        )
        svg = draw_curve(self.curve, names, marks)
        if path is not None:
            save(path, svg)
        return svg

    def rows(self) -> list[tuple[str, float, str]]:
        """The table: what, bits per byte, what it saves against the best member."""
        best = self.members[self.best]
        alone = [
            (f"{name} alone", bits, f"{100 * (1 - bits / best):+.2f} %")
            for name, bits in self.members.items()
        ]
        together = [("uniform weights", self.uniform, _saved(self.uniform_against_best))]
        if self.method != "uniform":
            together.append((f"{self.method} weights", self.fitted, _saved(self.against_best)))
        return [*alone, *together]

    def __str__(self) -> str:
        """The table and the verdict."""
        wide = max(len(name) for name, _, _ in self.rows())
        lines = [f"{name:<{wide}}  {bits:.4f}  {saved}" for name, bits, saved in self.rows()]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        """The table and the verdict, for notebooks."""
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{bits:.4f}</td><td>{html.escape(saved)}</td></tr>"
            for name, bits, saved in self.rows()
        )
        return (
            "<table><tr><th></th><th>bits per byte</th><th>saved against the best member</th></tr>"
            f"{cells}</table><p>{html.escape(self.verdict)}</p>"
        )


def _saved(saved: Interval) -> str:
    """``3.1 % [1.7, 4.4]``."""
    mean, low, high = (100 * value for value in saved)
    return f"{mean:.2f} % [{low:.2f}, {high:.2f}]"
