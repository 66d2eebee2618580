"""What a request asks for in a step, and who answers: the fusion, or main's raw logits."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_ensemble.decoding.fused import choose_fused
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.raw import choose_raw
from langchain_ensemble.decoding.task import Chosen


def choose_all(questions: Sequence[Question]) -> list[list[Chosen]]:
    """Choose a key for every row of some requests.

    Args:
        questions: One a request.

    Returns:
        One choice a row, request by request.
    """
    return [
        choose_raw(question) if len(question.task.voices) == 1 else choose_fused(question)
        for question in questions
    ]


def choose_apart(questions: Sequence[Question]) -> list[list[Chosen] | Exception]:
    """As :func:`choose_all`, but what goes wrong stays with the request it belongs to.

    Args:
        questions: One a request.

    Returns:
        One choice a row, or the error, request by request.
    """
    found: list[list[Chosen] | Exception] = []
    for question in questions:
        try:
            found += choose_all([question])
        except Exception as error:
            found.append(error)
    return found
