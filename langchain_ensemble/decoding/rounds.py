"""One round: a step of every request that runs, with one forward a member wherever they share.

All start their forwards before anybody asks for the result, so that members which run several
sessions' rows in one forward can do so. What goes wrong in one request is its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from langchain_ensemble.decoding.choosing import choose_apart
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Piece
from langchain_ensemble.decoding.served import Served
from langchain_ensemble.errors import EnsembleError


def run_round(running: Sequence[Served], turn: int) -> None:
    """Read a piece of every prompt that was not read, and decode a step of all others.

    Args:
        running: The requests; they get their pieces, or the error that ended them.
        turn: Number of the round: requests that draft let the same member read.
    """
    try:
        _run(running, turn)
    except BaseException:  # the thread that pumps was interrupted: nobody knows how far it got
        for one in running:
            if one.live:
                one.fail(
                    EnsembleError(
                        "the thread that ran a step for this request and others was interrupted; "
                        "ask again, the ensemble stays usable"
                    )
                )
        raise


@torch.inference_mode()
def _run(running: Sequence[Served], turn: int) -> None:
    begun = time.perf_counter()
    for one in running:
        if not one.loop.read:
            with one.minded():
                one.loop.read_on()
    asked: list[tuple[Served, Question | None]] = []
    for one in running:
        if one.error is None and one.loop.read:
            with one.minded():
                asked.append((one, one.loop.ask()))
    settled = _answer(asked, turn)
    for one, _, _ in settled:  # the first to collect runs what all have started
        with one.minded():
            one.loop.collect()
    seconds = time.perf_counter() - begun
    for one, pieces, keys in settled:
        if one.error is None:
            with one.minded():
                one.loop.note(keys, seconds)
        one.give(pieces)


def _answer(
    asked: Sequence[tuple[Served, Question | None]], turn: int
) -> list[tuple[Served, list[Piece], int]]:
    """Choose for all together, and start what their voices read next."""
    questions = [question for _, question in asked if question is not None]
    chosen = iter(choose_apart(questions))
    settled: list[tuple[Served, list[Piece], int]] = []
    for one, question in asked:
        picked = [] if question is None else next(chosen)
        with one.minded():
            if isinstance(picked, Exception):
                raise picked
            settled.append((one, one.loop.answer(question, picked, turn), len(picked)))
    return settled
