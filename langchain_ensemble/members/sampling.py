"""The sampling processors of transformers, as plain functions.

Decoding may not import transformers, so members hand them over: first the penalty, which reads raw
scores, then the filters, which read scores divided by the temperature. The order is that of
``generate``: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from typing import cast

from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_ensemble.members.base import Processor


def penalty(repetition_penalty: float) -> list[Processor]:
    """Make the repetition penalty: none where it is 1.

    Args:
        repetition_penalty: Above 1 discourages ids that were seen.

    Returns:
        Zero or one processor ``(ids [B, T], scores [B, S]) -> scores [B, S]``.
    """
    if repetition_penalty == 1.0:
        return []
    return [cast(Processor, RepetitionPenaltyLogitsProcessor(penalty=float(repetition_penalty)))]


def filters(temperature: float, top_k: int, top_p: float, min_p: float) -> list[Processor]:
    """Make the temperature and the sampling filters, in transformers' order.

    Args:
        temperature: Above 0; 1 is off. Greedy decoding (0) needs no filter and gets none.
        top_k: Most probable entries kept; 0 is off.
        top_p: Nucleus mass; 1 is off.
        min_p: Share of the best entry's probability below which entries fall; 0 is off.

    Returns:
        Processors to call one after the other; they read no ids.
    """
    if temperature == 0.0:
        return []
    made: list[Processor] = []
    if temperature != 1.0:
        made.append(cast(Processor, TemperatureLogitsWarper(float(temperature))))
    if top_k > 0:
        made.append(cast(Processor, TopKLogitsWarper(top_k=int(top_k))))
    if top_p < 1.0:
        made.append(cast(Processor, TopPLogitsWarper(top_p=float(top_p))))
    if min_p > 0.0:
        made.append(cast(Processor, MinPLogitsWarper(min_p=float(min_p))))
    return made


def processors(
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> list[Processor]:
    """Make the penalty and the filters, in the order in which ``generate`` calls them."""
    return [*penalty(repetition_penalty), *filters(temperature, top_k, top_p, min_p)]
