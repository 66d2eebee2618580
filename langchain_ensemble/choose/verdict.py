"""The verdict: one sentence, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langchain_ensemble.choose.power import needed_items
from langchain_ensemble.choose.stats import Interval

WORTH = 0.02
"""A gain below two points is not looked for: nobody pays N models for it."""

Kind = Literal["ensemble", "alone", "self-consistency", "undecided"]


@dataclass(frozen=True)
class Contest:
    """Two systems on the same questions.

    Attributes:
        difference: Of their accuracies, with its bootstrap interval.
        p: Of the exact sign test.
        discordant: Share of questions that exactly one of them has right.
        bound: What the difference is at most, by the exact intervals of wins and losses: a
            bootstrap of few differences is too sure.
    """

    difference: Interval
    p: float
    discordant: float
    bound: float

    def decided(self, level: float) -> int:
        """1: the first is better, -1: the second, 0: cannot be told. Both tests must say so."""
        if not self.difference.excludes_zero or self.p > 1 - level:
            return 0
        return 1 if self.difference.mean > 0 else -1


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Attributes:
        items: Questions of the dev set.
        level: Of every interval; already corrected for how many ensembles were tried.
        best: The best single candidate.
        best_accuracy: Its accuracy.
        ensemble: What the best ensemble is called; None: none was measured.
        ensemble_accuracy: Its accuracy.
        why_not: Why there is no ensemble.
        against_best: The ensemble against the best single candidate.
        same_memory: The best single candidate in the ensemble's memory that is no member of it;
            None: there is none, or a member is as good.
        samples: How many answers of the best member cost as much as one of the ensemble.
        sampled_of: Who that best member is.
        sampled_accuracy: Of their majority; None: not measured.
        sampled_against_best: That majority against the best single candidate's one answer.
        vote_accuracy: Of a majority over the members' own answers.
    """

    items: int
    level: float
    best: str
    best_accuracy: float
    ensemble: str | None = None
    ensemble_accuracy: float = 0.0
    why_not: str = ""
    against_best: Contest | None = None
    same_memory: str | None = None
    samples: int = 0
    sampled_of: str = ""
    sampled_accuracy: float | None = None
    sampled_against_best: Contest | None = None
    vote_accuracy: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What to use.

    Attributes:
        kind: ``"ensemble"``, ``"self-consistency"``, ``"alone"``, or ``"undecided"`` (use the best
            candidate alone until more questions decide).
        sentence: For people.
        needed: Questions that would decide; None where it is decided.
    """

    kind: Kind
    sentence: str
    needed: int | None = None


def decide(evidence: Evidence) -> Verdict:
    """Weigh the ensemble against the best candidate alone, and against its own samples.

    Args:
        evidence: The numbers.

    Returns:
        The verdict.
    """
    e = evidence
    sampled = e.sampled_against_best
    sampling = sampled is not None and sampled.decided(e.level) > 0
    if e.ensemble is None or e.against_best is None:
        return _sampled(e) if sampling else _alone(e, f"no ensemble was measured: {e.why_not}")
    won = e.against_best.decided(e.level)
    if sampling and (won <= 0 or (e.sampled_accuracy or 0.0) >= e.ensemble_accuracy):
        return _sampled(e)
    if won > 0:
        return _together(e)
    if won < 0:
        return _alone(e, f"{e.ensemble} is worse, {_told(e.against_best, e.level)}")
    if e.best_accuracy == 1:
        return _alone(e, "it answers every question right, so that nothing is left to gain")
    if max(e.against_best.difference.high, e.against_best.bound) < WORTH:
        return _alone(
            e, f"{e.ensemble} gains less than {100 * WORTH:.0f} points: "
            f"{_told(e.against_best, e.level)}"
        )  # fmt: skip
    return _undecided(e)


def _together(e: Evidence) -> Verdict:
    assert e.against_best is not None
    more = []
    if e.sampled_accuracy is not None:
        more.append(f"{e.samples} samples of {e.sampled_of} reach {_share(e.sampled_accuracy)}")
    if e.vote_accuracy is not None:
        as_good = e.vote_accuracy >= e.ensemble_accuracy
        more.append(
            f"a vote over its members' answers {'is as good, ' if as_good else 'reaches '}"
            f"{_share(e.vote_accuracy)}"
        )
    beside = f"; {' and '.join(more)}" if more else ""
    return Verdict(
        "ensemble",
        f"Use {e.ensemble}: {_share(e.ensemble_accuracy)} against {_share(e.best_accuracy)} of "
        f"{e.best} alone, {_told(e.against_best, e.level)}{beside}.",
    )


def _sampled(e: Evidence) -> Verdict:
    assert e.sampled_against_best is not None
    assert e.sampled_accuracy is not None
    other = ""
    if e.ensemble is not None:
        other = f"; {e.ensemble}, at the same cost, reaches {_share(e.ensemble_accuracy)}"
    return Verdict(
        "self-consistency",
        f"Use {e.sampled_of} alone and let its answers vote: {e.samples} samples reach "
        f"{_share(e.sampled_accuracy)} against {_share(e.best_accuracy)} of {e.best} once, "
        f"{_told(e.sampled_against_best, e.level)}{other}.",
    )


def _alone(e: Evidence, why: str) -> Verdict:
    memory = ""
    if e.ensemble is not None and e.same_memory == e.best:
        memory = ", one candidate in the memory of the ensemble"
    return Verdict("alone", f"Use {e.best} alone ({_share(e.best_accuracy)}{memory}): {why}.")


def _undecided(e: Evidence) -> Verdict:
    assert e.against_best is not None
    seen = e.against_best.difference.mean
    gain = seen if seen >= WORTH else WORTH
    discordant = max(e.against_best.discordant, gain)
    needed = max(needed_items(gain, discordant, e.level), e.items + 1)
    few = (
        f", but sign test p {e.against_best.p:.3f}"
        if e.against_best.difference.excludes_zero
        else ""
    )
    what = "to tell" if seen >= WORTH else f"to tell a gain of {100 * WORTH:.0f} points"
    return Verdict(
        "undecided",
        f"The dev set of {e.items} is too small {what}: {e.ensemble} reaches "
        f"{_share(e.ensemble_accuracy)} against {_share(e.best_accuracy)} of {e.best} alone, "
        f"{_told(e.against_best, e.level)}{few}; at least {needed} items would be needed, and "
        f"until then {e.best} alone costs less.",
        needed,
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _told(contest: Contest, level: float) -> str:
    mean, low, high = (100 * value for value in contest.difference)
    return f"{mean:+.1f} points ({100 * level:.3g} % interval {low:+.1f} to {high:+.1f})"
