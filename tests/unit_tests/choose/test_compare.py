"""Votes, agreement, ceilings."""

from __future__ import annotations

import pytest

from langchain_ensemble.choose.asking import Reply
from langchain_ensemble.choose.compare import System, agreement, ceiling, pair, vote
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.signals import signal, signals
from langchain_ensemble.choose.stats import clopper_pearson

ITEM = Item("?", None, ("4",), "last_number")


def reply(text: str, logprob: float = -1.0, **features: float) -> Reply:
    known = {"mean_logprob": logprob, "mean_main_logprob": logprob, "share_fused": 0.0}
    return Reply(text, 1, 0.0, {**known, **features})


@pytest.mark.parametrize(
    ("texts", "first", "likeliest"),
    [
        (["it is 4", "5", "4."], "it is 4", "4."),
        (["5", "4.0", "4"], "4.0", "4"),  # one number, two ways to write it
        (["5", "4"], "5", "4"),  # even: order, or likelihood
        (["no idea", "none", "7"], "7", "7"),  # what comes to nothing is no party
        (["no", "none"], "no", "none"),
    ],
)
def test_vote(texts: list[str], first: str, likeliest: str) -> None:
    replies = [reply(text, -1.0 / (place + 1)) for place, text in enumerate(texts)]
    assert vote(ITEM, replies).text == first
    assert vote(ITEM, replies, likeliest=True).text == likeliest


def test_agreement_is_by_what_answers_come_to() -> None:
    replies = [reply(text) for text in ("4", "so 4", "5", "four")]
    assert agreement(ITEM, "= 4", replies) == 0.5
    assert agreement(ITEM, "no idea", replies) == 0.0


def system(name: str, texts: list[str]) -> System:
    right = tuple(ITEM.right(text) for text in texts)
    return System(name, "candidate", (name,), tuple(texts), right)


def test_pair_and_ceiling() -> None:
    a, b = system("a", ["It is 4", "It is 5", "x", "4"]), system("b", ["4", "5", "y", "It is 7"])
    found = pair([ITEM] * 4, a, b)
    assert found.agreement == 0.5  # two that come to nothing do not agree
    assert found.gap == 0.25
    assert found.first_word == 0
    assert found.both_wrong == 0.5
    assert found.length_ratio == pytest.approx((7 + 7 + 1 + 1) / (1 + 1 + 1 + 7))
    top = ceiling([a, b], 0.95)
    assert top.oracle == 0.5
    assert top.beta == (0.5, *clopper_pearson(2, 4))


def test_signals_of_one_and_of_several_voices() -> None:
    texts = ["4", "5", "4", "3"]
    items, right = [ITEM] * 4, [ITEM.right(text) for text in texts]
    alone = [reply(text, -0.1 if good else -1.0) for text, good in zip(texts, right, strict=True)]
    samples = [[reply("4"), reply("4")]] * 4
    found = signals(items, "a", alone, right, "a", ("a", samples))
    assert [one.name for one in found] == ["token probability of a", "agreement of 2 samples of a"]
    assert [one.auroc and one.auroc.mean for one in found] == [1.0, 1.0]
    assert found[1].values == (1.0, 0.0, 1.0, 0.0)
    fused = [
        reply(
            one.text,
            -0.1 if good else -1.0,
            mean_main_logprob=-0.5,
            share_fused=1.0,
            mean_disagreement=0.9 * (not good),
        )
        for one, good in zip(alone, right, strict=True)
    ]
    found = signals(items, "ab", fused, right, "a", None)
    assert [one.name for one in found] == [
        "confidence of the members",
        "agreement of the members",
        "token probability of a",
    ]
    assert [one.auroc and one.auroc.mean for one in found] == [1.0, 1.0, 0.5]


def test_a_signal_without_wrong_answers_has_no_auroc() -> None:
    assert signal("x", "a", [0.5, 0.6], [True, True]).auroc is None
