"""One voice: main's raw logits, as ``generate`` does it. Nothing is pooled, fused or re-tokenised.

Without a grammar nothing is masked either; under one every id that may not come is -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.choose import draw, padded
from langchain_ensemble.decoding.masks import legal_ids, raw_end_ids, stuck
from langchain_ensemble.decoding.opening import opened, raw_odds, too_late
from langchain_ensemble.decoding.protocols import Sampling
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Finish, TokenRecord
from langchain_ensemble.decoding.seeing import RawSight
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Chosen, Task


def choose_raw(question: Question) -> list[Chosen]:
    """Choose one id a row.

    Args:
        question: The rows and what they stand on.

    Returns:
        One choice a row; a control id brings no bytes.
    """
    task, rows = question.task, question.rows
    logits = question.logits[0]  # [B, V]
    width = logits.shape[-1]
    legal = legal_ids(task.voices, rows, task.spelled)
    empty = torch.zeros(len(rows), dtype=torch.bool, device=logits.device)
    if legal is not None:
        logits = logits.masked_fill(~_with_opening(task, rows, legal.masks[0]), -torch.inf)
        empty = logits.amax(-1) == -torch.inf
        logits = logits.masked_fill(empty[:, None], 0.0)  # decided below
    scores = _penalised(logits, question.ids, task.sampling)
    odds = raw_odds(question)
    if odds is not None:
        scores = torch.log_softmax(scores, -1) + odds.goes_on[:, None]
        scores = torch.cat([scores, odds.opens[:, None]], -1)
    picked = draw(scores, task.sampling, question.generators)
    inside = picked.clamp_max(width - 1)[:, None]
    said = logits.gather(1, inside)[:, 0] - logits.logsumexp(-1)
    if odds is not None:
        said = torch.where(picked == width, odds.opens, said + odds.goes_on)
    sight = RawSight(task, logits)
    columns = torch.stack([picked.float(), said.float(), empty.float()], -1)
    packed = sight.beside(columns).cpu().tolist()
    chosen = []
    for b, (token, logprob, nothing, *seen) in enumerate(packed):
        if nothing and legal is not None:
            over = _ended(task, 0.0)
            chosen.append(over if legal.may_end[b] else stuck(rows[b], task.voices, task.warn))
        elif token == width and task.opening is not None:
            chosen.append(opened(task, task.opening, logprob, logits[b], None))
        else:
            chosen.append(_chosen(task, int(token), logprob))
        chosen[-1] = sight.told(chosen[-1], seen)
    return chosen


def _with_opening(task: Task, rows: Sequence[Row], legal: Tensor) -> Tensor:
    """Ids that may come, with those that open a call where one may be opened."""
    if task.opening is None or not task.opening.ids or too_late(task, rows):
        return legal
    ids = torch.tensor(task.opening.ids, device=legal.device)
    return legal.index_fill(1, ids, True)


def _penalised(logits: Tensor, ids: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """[B, V] after the repetition penalty."""
    if sampling.penalty is None:
        return logits
    return sampling.penalty(padded(ids, logits.device), logits)


def _chosen(task: Task, token: int, logprob: float) -> Chosen:
    """What an id means: END, an opened call, or bytes."""
    voice = task.voices[0]
    spelled = task.spelled.get(token)
    if spelled is None and token in raw_end_ids(voice):
        return _ended(task, logprob)
    vocabulary = voice.vocabulary
    table = vocabulary.token_bytes
    silent = token >= len(table) or vocabulary.token_roles[token] is not None
    data = b"" if silent else table[token] or b""
    said: dict[str, float | None] = {voice.member.name: logprob}
    if task.opening is not None and token in task.opening.ids:
        record = TokenRecord(token, b"", logprob, said, fused=False)
        return Chosen(-1, record, Finish("stop", opened=(token,)))
    data = data if spelled is None else spelled
    return Chosen(token, TokenRecord(token, data, logprob, said, fused=False))


def _ended(task: Task, logprob: float) -> Chosen:
    said: dict[str, float | None] = {task.voices[0].member.name: logprob}
    return Chosen(-1, TokenRecord(None, b"", logprob, said, fused=False), Finish("stop"))
