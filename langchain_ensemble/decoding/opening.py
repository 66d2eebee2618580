"""Opening a tool call: main's decision alone, one more choice beside every key and END.

Main's softmax runs over its keys, END and the ids that open a call; p_open is what falls on the
last. The rest is fused as ever and scaled by 1 - p_open, so everything sums to 1. Under a grammar
main chooses between a call and the keys that the grammar allows, before the first key only.
Greedy: the answer opens iff p_open exceeds every scaled key and END (a tie goes to those). Where
main's format has no such id, p_open is main's path probability of the whole opening text, asked
once, before the answer's first key. Auxiliaries never open: their control ids stay masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START, state_after
from langchain_ensemble.decoding.caches import Caches
from langchain_ensemble.decoding.choose import draw
from langchain_ensemble.decoding.fusing import keys_of
from langchain_ensemble.decoding.protocols import Sampling, Voice
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Finish, TokenRecord
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.decoding.task import Chosen, Opening, Task
from langchain_ensemble.fusion.base import FusedDistribution


@dataclass(frozen=True)
class Odds:
    """How likely main opens a call, natural logarithms.

    Attributes:
        opens: [B] log p_open.
        goes_on: [B] log (1 - p_open).
    """

    opens: Tensor
    goes_on: Tensor

    def row(self, b: int) -> Odds:
        """One row's odds."""
        return Odds(self.opens[b : b + 1], self.goes_on[b : b + 1])


def fused_odds(question: Question, legal: Tensor | None = None) -> Odds | None:
    """Main's say on opening a call, beside a fused step.

    Args:
        question: The rows and what they stand on.
        legal: [B, V] main's ids that the grammar allows, END included; None: no grammar.

    Returns:
        The odds; None where no call can be opened.
    """
    task, rows, caches = question.task, question.rows, question.caches
    main = task.voices[0]
    if task.opening is None or too_late(task, rows):
        return None
    if task.opening.literal:
        masks = _literal_masks(main, task.opening.literal)
        return _literal_odds(task.opening.literal, rows, caches, masks)
    keys, allowed = keys_of(main)
    open_to_main = (keys.representative >= 0).index_fill(0, keys.end_ids, True) & allowed[START]
    logits = question.logits[0]
    opens = logits[:, list(task.opening.ids)].logsumexp(-1)
    if legal is not None:
        open_to_main = open_to_main & legal
    rest = logits.masked_fill(~open_to_main, -torch.inf).logsumexp(-1)
    whole = torch.logaddexp(opens, rest)
    inside = torch.tensor([row.fragment for row in rows], device=logits.device)
    return Odds(
        torch.where(inside, -torch.inf, opens - whole), torch.where(inside, 0.0, rest - whole)
    )


def too_late(task: Task, rows: Sequence[Row]) -> bool:
    """Whether a grammar has begun, so that no call can be opened any more."""
    return task.grammar is not None and bool(rows[0].records)  # rows begin together


def raw_odds(question: Question) -> Odds | None:
    """Main's say on opening a call by its text, with one voice; control ids need no odds."""
    task, rows, caches = question.task, question.rows, question.caches
    if task.opening is None or not task.opening.literal:
        return None
    return _literal_odds(task.opening.literal, rows, caches, None)


def scaled(fused: FusedDistribution, odds: Odds) -> FusedDistribution:
    """The fused distribution where no call is opened."""
    return replace(
        fused,
        logprobs=fused.logprobs + odds.goes_on[:, None],
        end=fused.end + odds.goes_on,
    )


def opened(
    task: Task, opening: Opening, logprob: float, logits: Tensor, generator: torch.Generator | None
) -> Chosen:
    """End a row that opens a call.

    Args:
        task: The request.
        opening: How main opens one.
        logprob: log p_open.
        logits: Main's logits of the row, [V].
        generator: The row's; None is greedy. It decides between several ids that open.

    Returns:
        The end of the row.
    """
    ids = opening.literal
    if opening.ids:
        scores = logits[list(opening.ids)][None]
        best = draw(scores, Sampling(None, ()), None if generator is None else [generator])
        ids = (opening.ids[int(best)],)
    said: dict[str, float | None] = {voice.member.name: None for voice in task.voices}
    said[task.voices[0].member.name] = logprob
    record = TokenRecord(ids[0] if opening.ids else None, b"", logprob, said, fused=False)
    return Chosen(-1, record, Finish("stop", opened=ids))


def _literal_odds(
    literal: Sequence[int], rows: Sequence[Row], caches: Caches, masks: Tensor | None
) -> Odds | None:
    """The odds of a whole text, before the answer's first key; None after that.

    Args:
        literal: Main's ids of the text.
        rows: The rows; they begin together.
        caches: Where main stands.
        masks: [q, V] ids that main may say before each of them; None: any.
    """
    if rows[0].records:
        return None
    logits = caches.ahead(literal)  # [B, q, V]
    if logits is None:  # no room for the text: no call can be written either
        return None
    if masks is not None:
        logits = logits.masked_fill(~masks, -torch.inf)
    target = torch.tensor(literal, device=logits.device).expand(len(logits), -1)
    steps = torch.log_softmax(logits, -1).gather(-1, target[:, :, None])[:, :, 0]
    opens = steps.sum(-1).clamp_max(0.0)
    return Odds(opens, torch.log1p(-opens.exp()))


def _literal_masks(main: Voice, literal: Sequence[int]) -> Tensor:
    """[q, V] ids that main may say before each id of a text."""
    keys, allowed = keys_of(main)
    table, state, states = main.vocabulary.token_bytes, START, []
    for token in literal:
        states.append(state)
        state = state_after(table[token] or b"", state)
    mask = (keys.representative >= 0).index_fill(0, keys.end_ids, True)
    return mask & allowed[torch.tensor(states, device=allowed.device)]
