"""``choose_members``: measure candidates, alone and together, and say what to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from langchain_ensemble.choose import compare
from langchain_ensemble.choose.asking import Answers, Progress
from langchain_ensemble.choose.compare import System
from langchain_ensemble.choose.devset import Metric, Source, read_dev_set
from langchain_ensemble.choose.report import Choice
from langchain_ensemble.choose.rule import Group, Standing, group
from langchain_ensemble.choose.signals import Signal, signals
from langchain_ensemble.choose.sizes import read_vram
from langchain_ensemble.choose.sureness import enough, learn_map
from langchain_ensemble.choose.trial import SAMPLED, VOTED, Alone, Together, Trial
from langchain_ensemble.choose.verdict import Contest, Evidence, Verdict, decide
from langchain_ensemble.contexts import check_contexts
from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.params import DEFAULT_MAX_TOKENS, Member, name_members

OURS = (
    *("members", "fusion", "gate", "main", "n", "logprobs", "trace", "abstain_below", "draft"),
    "calibration",  # that of other members
)
"""Settings that this function decides itself."""


def choose_members(
    candidates: Any,
    dev_set: Source,
    *,
    metric: Metric = "exact_match",
    chat: bool = False,
    vram: str | float | None = None,
    main: str | None = None,
    size: int = 2,
    fusions: Sequence[str | Mapping[str, Any]] | None = None,
    gates: Sequence[str | Mapping[str, Any]] | None = None,
    level: float = 0.95,
    seed: int = 0,
    answers: str | Path | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Choice:
    """Measure candidates alone and together on a dev set, and say what to use.

    Candidates run one after another; the ensemble needs all its members in memory.

    Args:
        candidates: Two or more, in any form that ``members=`` takes.
        dev_set: A file of JSON lines, or mappings: ``prompt`` (raw text) or ``messages``, and
            ``answer`` or ``answers``; ``metric`` where it is not the common one.
        metric: ``"exact_match"`` (normalised), ``"contains"``, ``"last_number"``, ``"letter"``, or
            a function of (answer, right answers).
        chat: Send each prompt as a user message through the members' chat templates.
        vram: Memory for all members together: ``"24GB"``, or a number of GB; None: no limit.
        main: Who must be a member, and main; default: the best candidate.
        size: Members of the ensemble at most.
        fusions: Names, or mappings with settings; default: that of the package.
        gates: As ``fusions``.
        level: Of the intervals.
        seed: Of samples and bootstraps.
        answers: File that keeps answers as they come; what it holds is not asked again.
        on_progress: Called with (stage, done, total).
        **settings: Any other field of ``EnsembleLLM`` or ``ChatEnsemble``, for all alike
            (``max_tokens=``, 256 by default, ``stop=``, ``dtype=`` …; a rule for ``weights=``).

    Returns:
        The report, with a verdict.

    Raises:
        ConfigError: No questions, one candidate, or settings that are wrong.
        MemberError: No candidate can be measured.
    """
    members = {str(one.name): one for one in name_members(candidates)} if candidates else {}
    items = read_dev_set(dev_set, metric=metric)
    _check(members, main, size, settings)
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise ConfigError(f"level is {level!r}; it must lie between 0 and 1, as 0.95 does")
    budget = read_vram(vram)
    common = {**settings, "logprobs": True}
    if "max_new_tokens" not in settings:
        common.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    if settings.get("temperature"):
        common["seed"] = seed
    trial = Trial(
        items=items,
        chat=chat or items[0].messages is not None,
        candidates=members,
        settings=common,
        seed=seed,
        answers=Answers(answers),
        progress=on_progress or (lambda stage, done, total: None),
    )
    plans = trial.plans(fusions, gates)
    alone = trial.alone(budget, main)
    chosen = _group(alone, size, budget, main)
    together = trial.together(chosen.members, plans, alone)
    return _conclude(trial, chosen, alone, together, level, budget)


def _check(
    members: Mapping[str, Member], main: str | None, size: int, settings: Mapping[str, Any]
) -> None:
    if len(members) < 2:
        raise ConfigError(
            f"candidates holds {', '.join(map(repr, members)) or 'nobody'}; to choose, at least 2 "
            "are needed"
        )
    if main is not None and main not in members:
        raise ConfigError(unknown_name("main member", main, members))
    if not isinstance(size, int) or size < 2:
        raise ConfigError(f"size is {size!r}; an ensemble has at least 2 members")
    check_contexts(settings.get("contexts"), list(members))
    for name in OURS:
        if name in settings:
            raise ConfigError(f"choose_members decides {name} itself; leave it out of settings")
    if not isinstance(settings.get("weights", "uniform"), str):
        raise ConfigError(
            "weights must be a rule: the members are not known before they are chosen"
        )


def _group(alone: Alone, size: int, budget: int | None, main: str | None) -> Group:
    standings = [
        Standing(name, one.accuracy, one.length, alone.sizes[name])
        for name, one in alone.systems.items()
    ]
    return group(standings, size=size, budget=budget, start=main)


def _conclude(
    trial: Trial, chosen: Group, alone: Alone, together: Together, level: float, budget: int | None
) -> Choice:
    """Compare what was measured."""
    candidates = list(alone.systems.values())
    level = 1 - (1 - level) / max(1, len(together.ensembles))
    best = _best(candidates)
    systems = [*candidates, *together.beside.values(), *together.ensembles.values()]
    contests = {
        one.name: compare.contest(one, best, level, trial.seed)
        for one in systems
        if one is not best
    }
    in_memory = _in_memory(candidates, chosen, together) or best
    verdict, winner = _judged(trial, chosen, together, (best, in_memory), contests, level)
    own = [alone.systems[name] for name in chosen.members]
    groups = [own, candidates] if len(own) < len(candidates) else [own]
    return Choice(
        verdict=verdict,
        suggestion=trial.config(winner),
        suggested_class="ChatEnsemble" if trial.chat else "EnsembleLLM",
        questions=tuple(item.text for item in trial.items),
        answers=tuple(item.answers for item in trial.items),
        level=level,
        systems=tuple(systems),
        best=best.name,
        best_in_memory=in_memory.name,
        members=chosen.members,
        compatible=chosen.compatible,
        reasons=chosen.reasons,
        contests=contests,
        pairs=tuple(compare.pair(trial.items, *two) for two in combinations(candidates, 2)),
        ceilings=tuple(compare.ceiling(one, level) for one in groups),
        signals=_signals(trial, alone, together, best),
        confidence=_learned(together),
        left_out=alone.left_out,
        skipped=together.skipped,
        vram=budget,
    )


def _best(systems: Sequence[System]) -> System:
    return max(systems, key=lambda one: one.accuracy)


def _in_memory(candidates: Sequence[System], chosen: Group, together: Together) -> System | None:
    """The best candidate that fits where the ensemble does; its members do."""
    room = next((one.memory for one in together.ensembles.values()), None)
    fit = [
        one
        for one in candidates
        if one.name in chosen.members
        or (room is not None and one.memory is not None and one.memory <= room)
    ]
    return _best(fit) if fit else None


def _judged(
    trial: Trial,
    chosen: Group,
    together: Together,
    singles: tuple[System, System],
    contests: Mapping[str, Contest],
    level: float,
) -> tuple[Verdict, System]:
    """The verdict, and the system that it is for."""
    best, in_memory = singles
    ensemble = _best(list(together.ensembles.values())) if together.ensembles else None
    sampled, vote = together.beside.get(SAMPLED), together.beside.get(VOTED)
    why = "; ".join(f"{name}: {text}" for name, text in together.skipped.items())
    evidence = Evidence(
        items=len(trial.items),
        level=level,
        best=best.name,
        best_accuracy=best.accuracy,
        ensemble=None if ensemble is None else ensemble.name,
        ensemble_accuracy=0.0 if ensemble is None else ensemble.accuracy,
        why_not=why or "no two candidates are left",
        against_best=None if ensemble is None else contests[ensemble.name],
        same_memory=None if in_memory.name in chosen.members else in_memory.name,
        samples=together.samples,
        sampled_of=sampled.members[0] if sampled else "",
        sampled_accuracy=sampled.accuracy if sampled else None,
        sampled_against_best=contests[SAMPLED] if sampled else None,
        vote_accuracy=vote.accuracy if vote else None,
    )
    verdict = decide(evidence)
    winners = {"ensemble": ensemble, "self-consistency": sampled}
    return verdict, winners.get(verdict.kind) or best


def _learned(together: Together) -> dict[str, Any] | None:
    """The confidence map of the best ensemble, from all of its answers."""
    if not together.ensembles:
        return None
    of = _best(list(together.ensembles.values()))
    features = [reply.features for reply in together.replies[of.name]]
    return learn_map(features, of.right).to_dict() if enough(of.right) else None


def _signals(trial: Trial, alone: Alone, together: Together, best: System) -> tuple[Signal, ...]:
    of = _best(list(together.ensembles.values())) if together.ensembles else best
    replies = together.replies.get(of.name) or alone.replies[of.name]
    main = together.main if together.ensembles else best.name
    return signals(trial.items, of.name, replies, of.right, main, together.sampled)
