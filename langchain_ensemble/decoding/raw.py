"""One voice: main's raw logits, as ``generate`` does it. Nothing is pooled, masked or fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.choose import draw
from langchain_ensemble.decoding.protocols import Sampling, Voice
from langchain_ensemble.decoding.records import TokenRecord
from langchain_ensemble.decoding.task import Chosen


def choose_raw(
    voice: Voice,
    logits: Tensor,
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator] | None,
) -> list[Chosen]:
    """Choose one id a row.

    Args:
        voice: Main.
        logits: [B, V] float32.
        ids: Prompt and answer of each row, read by the penalty only.
        sampling: Processors.
        generators: One a row; None is greedy.

    Returns:
        One choice a row; a control id brings no bytes.
    """
    scores = logits
    if sampling.penalty is not None:
        penalty, device = sampling.penalty, logits.device
        rows = zip(ids, logits[:, None], strict=True)
        scores = torch.cat(
            [penalty(torch.tensor([seen], device=device), row) for seen, row in rows]
        )
    picked = draw(scores, sampling, generators)
    logprobs = logits.gather(1, picked[:, None])[:, 0] - logits.logsumexp(-1)
    packed = torch.stack([picked.float(), logprobs.float()], -1).cpu().tolist()
    return [_chosen(voice, int(token), logprob) for token, logprob in packed]


def _chosen(voice: Voice, token: int, logprob: float) -> Chosen:
    vocabulary = voice.vocabulary
    end = token in (voice.member.end_ids or vocabulary.end_ids)  # ``generate`` knows no roles
    table = vocabulary.token_bytes
    silent = token >= len(table) or vocabulary.token_roles[token] is not None
    data = b"" if end or silent else table[token] or b""
    said: dict[str, float | None] = {voice.member.name: logprob}
    record = TokenRecord(None if end else token, data, logprob, said, fused=False)
    return Chosen(-1 if end else token, record)
