"""Open boundaries where the member finds main's choice as good as impossible, and long answers."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import MemberDistribution, TokenSpace
from langchain_ensemble.params import EnsembleParams


class Keys:
    keys = sorted([b"a", b"b", b"ba", b"bb", b"c"])
    order = torch.arange(5)

    def range(self, prefix: bytes) -> tuple[int, int]:
        hits = [n for n, key in enumerate(self.keys) if key.startswith(prefix)]
        return (hits[0], hits[-1] + 1) if hits else (0, 0)

    def position(self, key: bytes) -> int | None:
        return self.keys.index(key) if key in self.keys else None


def distribution(logits: list[float]) -> MemberDistribution:
    logprobs = torch.log_softmax(torch.tensor([logits]), -1)
    return MemberDistribution(TokenSpace("x", 5), logprobs, torch.tensor([-math.inf]))


@pytest.mark.parametrize("low", [-1.0, -30.0, -36.0, -37.0, -60.0, -95.0])
def test_tiny_probabilities_keep_their_ratio(low: float) -> None:
    tracker = BoundaryTracker(Keys(), 1)
    said = distribution([0.0, low - 3, low, low, low - 10])
    assert float(tracker.observe(said, [b""], [True], [0])) == 1.0
    expected = math.exp(-3) / (math.exp(-3) + 2)  # "b" among "b", "ba", "bb"
    assert float(tracker.observe(said, [b"b"], [True], [0])) == pytest.approx(expected, rel=1e-4)


def test_bytes_that_no_key_spells_begin_anew() -> None:
    tracker = BoundaryTracker(Keys(), 1)
    said = distribution([0.0, 0.0, 0.0, 0.0, 0.0])
    tracker.observe(said, [b""], [True], [0])
    assert float(tracker.observe(said, [b"zz"], [True], [0])) == 1.0
    assert float(tracker.observe(said, [b"zzb"], [True], [0])) == pytest.approx(1 / 3)


def test_ten_thousand_steps_lose_no_digits() -> None:
    tracker = BoundaryTracker(Keys(), 1)
    said = distribution([-8.0, -9.0, -7.0, -7.5, 0.0])
    answer = b""
    tracker.observe(said, [answer], [True], [0])
    values = []
    for step in range(10_000):
        answer += b"b" if step % 2 else b"a"
        answer = answer[-64:] if step == -1 else answer
        values.append(float(tracker.observe(said, [answer], [True], [0])))
    assert values[-1] == pytest.approx(values[101], rel=1e-5)
    assert values[-2] == pytest.approx(values[100], rel=1e-5)


def both(one: MemberDistribution, other: MemberDistribution) -> MemberDistribution:
    return MemberDistribution(
        one.space, torch.cat([one.logprobs, other.logprobs]), torch.cat([one.end, other.end])
    )


def test_a_row_alone_is_the_row_among_others() -> None:
    dice = random.Random(4)
    trackers = [BoundaryTracker(Keys(), 2), BoundaryTracker(Keys(), 2)]
    answers = [b"", b""]
    kept: list[Any] = []
    for step in range(300):
        said = [distribution([dice.gauss(0, 3) for _ in range(5)]) for _ in range(2)]
        active = [dice.random() < 0.9, dice.random() < 0.9]
        together = trackers[0].observe(both(*said), answers, active, [0, 1])
        if step % 3:  # one by one, in any order
            apart = [torch.zeros(1)] * 2
            for row in dice.sample(range(2), 2):
                apart[row] = trackers[1].observe(said[row], [answers[row]], [active[row]], [row])
        else:
            apart = [trackers[1].observe(both(*said), answers, active, [0, 1])]
        assert torch.allclose(together, torch.cat(apart), rtol=1e-4, atol=1e-6)
        if step % 7 == 3:
            kept = [[tracker.mark() for tracker in trackers], list(answers)]
        if kept and step % 7 == 6:
            for tracker, mark in zip(trackers, kept[0], strict=True):
                tracker.rollback(mark)
            answers = list(kept[1])
        if step % 50 == 49:
            for tracker in trackers:
                tracker.select([1, 0])
            answers, kept = answers[::-1], []
        answers = [answer + dice.choice([b"a", b"b", b"ba", b"c"]) for answer in answers]


def test_windows_of_a_finer_auxiliary_are_read_once(shared: Path) -> None:
    text = (shared / "text" / "tinystories" / "heldout_dev.txt").read_text()[:900]
    folders = [str(shared / "models" / n) for n in ("stories260K", "babyllama-361")]
    with Ensemble(EnsembleParams(members=folders, fusion="average")) as owner:
        fused, alone = owner.score(text), owner.score(text, member="babyllama-361")
        assert alone.windows <= fused.windows <= alone.windows + 3
        assert owner.score("", "").logprob == 0.0
        assert owner.score("", "", member="stories260K").tokens == 0
