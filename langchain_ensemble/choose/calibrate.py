"""``calibrate``: weights learned on one half of a dev set, tested on the other.

Knows both LangChain classes only as something that has an engine, fields and members that can be
had alone.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_ensemble.adapter.messages import read_conversation
from langchain_ensemble.chat.conversation import Conversation
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose.asking import Model, Progress
from langchain_ensemble.choose.belonging import Reads, belongs_to
from langchain_ensemble.choose.calibration_file import Calibration, write_calibration
from langchain_ensemble.choose.calibration_report import CalibrationReport, Fit, Method
from langchain_ensemble.choose.devset import Metric
from langchain_ensemble.choose.learn import STEP, Kind, Read, Rows, Texts, is_convex, kind_of
from langchain_ensemble.choose.listening import Sample, listen, read_samples
from langchain_ensemble.choose.rightness import (
    confidence_by_answers,
    questions,
    weights_by_scores,
)
from langchain_ensemble.choose.solver import TOLERANCE, minimise
from langchain_ensemble.choose.stats import bootstrap_ratio
from langchain_ensemble.contexts import Contexts
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name
from langchain_ensemble.roles import ROLES

METHODS = ("learned", "adapt", "uniform")

FEWEST = 8
"""Texts of a dev set at least."""

POINTS = {"linear": 41, "log-linear": 41, "asked": 11}
"""Of the curve, by what a point costs."""


def calibrate(
    llm: Model,
    dev_set: Sequence[Any],
    *,
    method: Method = "learned",
    metric: Metric | None = None,
    file: str | Path | None = None,
    on_progress: Progress | None = None,
) -> CalibrationReport:
    """See :meth:`~langchain_ensemble.llms.EnsembleLLM.calibrate`."""
    if method not in METHODS:
        raise ConfigError(unknown_name("method of calibrate", method, METHODS))
    if method == "adapt" and metric is None:
        metric = "exact_match"
    _check(llm, file)
    if llm.gate != "always":
        warnings.warn(
            f"gate={llm.gate!r} is left open while weights are calibrated: they are measured where "
            "members are fused at every position",
            EnsembleWarning,
            stacklevel=3,
        )
    if llm.calibration is not None:  # the new one takes its place, so the old one is not read
        llm = llm.model_copy(update={"calibration": None})
    samples = read_samples(dev_set, _converse(llm), FEWEST)
    items = None if metric is None else questions(samples, metric)
    progress = on_progress or (lambda *_: None)
    engine = llm.load().engine
    kind = kind_of(engine.fusion)
    texts = Texts(
        _reader(engine, samples, kind, llm.contexts),
        [sample.size for sample in samples],
        kind,
        on_progress=progress,
    )
    taught, tested = halves(len(samples))
    names = [str(member.name) for member in engine.params.ordered]
    weights, fit, right = _uniform(names), None, None
    if method == "learned":
        weights, fit = _learn(engine, texts, taught)
    elif method == "adapt" and items is not None:
        found, right = weights_by_scores(llm, [items[n] for n in taught], progress)
        weights = tuple(found[name] for name in names)
    report = _report(engine, texts, (taught, tested), method, weights)
    report = replace(report, fit=fit, right=right)
    if items is not None:
        both = (taught, tested)
        learned, ranks = confidence_by_answers(llm, items, both, report.weights, progress)
        report = replace(report, confidence=learned, confidence_auroc=ranks)
    if file is not None:
        _write(file, engine, llm, report)
    return report


SEED = 5
"""Of the halves of a dev set: no size up to 400 is cut by turns."""


def halves(count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Numbers of the texts that teach and of those that test, alike in every run.

    Drawn, since dev sets come sorted, and put together by turns.
    """
    drawn = random.Random(SEED).sample(range(count), count)
    middle = -(-count // 2)
    return sorted(drawn[:middle]), sorted(drawn[middle:])


def _check(llm: Model, file: str | Path | None) -> None:
    """Refuse what has no weights, and a file that has no folder, before hours of reading."""
    if file is not None and not Path(file).expanduser().absolute().parent.is_dir():
        raise ConfigError(
            f"the calibration cannot be written to {str(file)!r}: there is no such folder"
        )
    if len(llm.params.members) < 2:
        raise ConfigError("calibrate weighs members; this ensemble has one, which has weight 1")
    name = llm.params.fusion_name if isinstance(llm.fusion, str | dict) else llm.fusion.name
    if name in ROLES:
        raise ConfigError(
            f"fusion={name!r} gives its members roles, not weights; there is nothing to calibrate"
        )


def _converse(llm: Model) -> Callable[[Any], Conversation] | None:
    if not isinstance(llm, ChatEnsemble):
        return None
    return lambda said: read_conversation(llm._convert_input(said).to_messages())


def _reader(engine: Ensemble, samples: Sequence[Sample], kind: Kind, contexts: Contexts) -> Read:
    """Reads a text by its number, and names it where that cannot be."""

    def read(number: int) -> list[Rows]:
        try:
            return listen(engine, samples[number], kind, contexts)
        except ConfigError as error:
            raise ConfigError(f"item {number} of dev_set: {error}") from error

    return read


def _uniform(names: Sequence[str]) -> tuple[float, ...]:
    return (1.0 / len(names),) * len(names)


def _learn(engine: Ensemble, texts: Texts, taught: Sequence[int]) -> tuple[tuple[float, ...], Fit]:
    """Minimise the bits per byte of the texts that teach."""
    fusion, convex = engine.fusion, is_convex(engine.fusion)
    if not convex:
        warnings.warn(
            f"fusion={fusion.name!r}: bits per byte are not convex in the weights, so these are "
            "the best that were found, without a certificate",
            EnsembleWarning,
            stacklevel=4,
        )
    objective = texts.objective(taught)
    asked = kind_of(fusion) == "asked"
    tolerance = STEP**2 if asked else TOLERANCE  # slopes are differences
    count = len(engine.params.members)
    found = minimise(objective, (1.0 / count,) * count, tolerance)
    weights, best = found.weights, found.value
    for corner in range(count):  # a member without weight brings no candidates, and costs nothing
        alone = tuple(float(place == corner) for place in range(count))
        value = objective(alone)[0]
        if value < best:
            weights, best = alone, value
    gap = max(0.0, found.gap - (found.value - best)) if convex else None
    return weights, Fit(found.evaluations + count, gap, found.converged, texts.again)


def _report(
    engine: Ensemble,
    texts: Texts,
    halves: tuple[Sequence[int], Sequence[int]],
    method: Method,
    weights: tuple[float, ...],
) -> CalibrationReport:
    """Measure on the half that taught nothing."""
    tested = halves[1]
    sizes = [texts.sizes[number] for number in tested]
    names = [str(member.name) for member in engine.params.ordered]
    count = len(names)
    uniform = _uniform(names)
    corners = [tuple(float(i == place) for i in range(count)) for place in range(count)]
    alone = {n: texts.nats(w, tested) for n, w in zip(names, corners, strict=True)}
    even, fitted = texts.nats(uniform, tested), texts.nats(weights, tested)
    best = min(alone, key=lambda name: sum(alone[name]))
    order = engine.names
    given = dict(zip(names, weights, strict=True))
    return CalibrationReport(
        method=method,
        weights={name: given[name] for name in order},
        fusion=engine.fusion.name,
        main=engine.main_name,
        members={name: _bits(alone[name], sizes) for name in order},
        uniform=_bits(even, sizes),
        fitted=_bits(fitted, sizes),
        best=best,
        against_best=bootstrap_ratio(fitted, alone[best], sizes),
        against_uniform=bootstrap_ratio(fitted, even, sizes),
        uniform_against_best=bootstrap_ratio(even, alone[best], sizes),
        texts=(len(halves[0]), len(tested)),
        num_bytes=(sum(texts.sizes[n] for n in halves[0]), sum(sizes)),
        curve=_curve(texts, tested, sizes, names.index(order[0])) if count == 2 else (),
    )


def _bits(nats: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(nats) / (sum(sizes) * 0.6931471805599453)


def _curve(
    texts: Texts, numbers: Sequence[int], sizes: Sequence[int], first: int
) -> tuple[tuple[float, float], ...]:
    """Bits per byte of two members against the weight of the first of the user's."""
    points = POINTS[texts.kind]
    found = []
    for number in range(points):
        share = number / (points - 1)
        weights = (share, 1 - share) if first == 0 else (1 - share, share)
        found.append((share, _bits(texts.nats(weights, numbers), sizes)))
    return tuple(found)


def _write(file: str | Path, engine: Ensemble, llm: Model, report: CalibrationReport) -> None:
    """Write the file that ``calibration=`` reads."""
    reads: Reads = "conversations" if isinstance(llm, ChatEnsemble) else "texts"
    with engine.alone() as (built, _):
        owner = belongs_to(built, engine.params, engine.fusion, reads)
    measured = {
        "method": report.method,
        "bits_per_byte": {**report.members, "uniform": report.uniform, "these": report.fitted},
        "verdict": report.verdict,
    }
    made = Calibration(owner, report.weights, report.confidence, measured)
    write_calibration(file, made)
