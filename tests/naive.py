"""The decode loop's naive twin: no cache, no incremental tokenization, no tensors for boundaries.

Every step encodes the whole answer for every member, reads prompt and answer anew, weighs open
boundaries by looping over the vocabulary, and takes the first maximum.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import member_distribution
from langchain_ensemble.members.base import MemberPrompt

WINDOW = 8


def naive_greedy(
    ensemble: Ensemble, prompt: str, steps: int, weights: list[float], boundaries: bool
) -> tuple[bytes, list[int]]:
    """Greedy decoding of one prompt with every member a voice.

    Returns:
        The answer's bytes and the chosen union keys (-1: END, which stops).
    """
    built: Any = ensemble._ready()
    prompts = [v.member.prompt(prompt) for v in built.voices]
    answer, main_ids, keys = b"", [], []
    visited: list[list[bytes]] = [[] for _ in built.voices]  # per voice, what it held at boundaries
    paths: list[list[float]] = [[] for _ in built.voices]
    lead = [
        b" " * int(p.text_start and v.vocabulary.dummy_prefix)
        for v, p in zip(built.voices, prompts, strict=True)
    ]
    for step in range(steps):
        held = [(own + answer if step else b"") for own in lead]
        try:
            text: str | None = answer.decode()
        except UnicodeDecodeError:
            text = None
        distributions, abstain, c = [], [], []
        for place, voice in enumerate(built.voices):
            silent = place > 0 and (text is None or (step == 0 and lead[place] != lead[0]))
            ids = main_ids if voice.verbatim else voice.vocabulary.encode(_whole(held[place])).ids
            got = _distribution(voice, prompts[place], ids, answer if place == 0 else b"")
            distributions.append(got)
            abstain.append(silent or bool(got.abstain[0]))
            weigh = boundaries and not voice.verbatim and text is not None
            where = (voice, prompts[place], held[place], visited[place], paths[place])
            c.append(_boundary(*where) if weigh else 1.0)
        rows = effective_weights(
            torch.tensor([weights]), torch.tensor([abstain]), torch.tensor([c], dtype=torch.float32)
        )
        fused = built.fuser(distributions, rows)
        scores = torch.cat([fused.logprobs, fused.end[:, None]], -1)[0]
        column = int(scores.argmax())
        if column == fused.logprobs.shape[-1]:
            return answer, [*keys, -1]
        key = column if fused.keys is None else int(fused.keys[0, column])
        keys.append(key)
        data = built.key_bytes[key]
        answer += data[1:] if step == 0 and lead[0] and data.startswith(b" ") else data
        if key < built.members[0].logits_width:
            main_ids = [*main_ids, key]
        else:
            main_ids = list(built.voices[0].vocabulary.encode((lead[0] + answer).decode()).ids)
    return answer, keys


def _whole(answer: bytes) -> str:
    return answer.decode("utf-8", errors="ignore")


def _distribution(voice: Any, prompt: MemberPrompt, ids: list[int], answer: bytes) -> Any:
    session = voice.member.session()
    logits = session.prefill([MemberPrompt((*prompt.ids, *ids))])
    session.close()
    state = _state(answer)
    return member_distribution(logits, voice.keys, voice.allowed[state])


def _state(answer: bytes) -> int:
    from langchain_ensemble.constraints.utf8 import state_after

    return state_after(answer)


def _boundary(
    voice: Any, prompt: MemberPrompt, answer: bytes, visited: list[bytes], paths: list[float]
) -> float:
    """c_i by the formula, over the last boundaries, with Python sums."""
    table = voice.vocabulary.token_bytes
    mass = ended = 0.0
    recent = list(zip(visited, paths, strict=True))[-WINDOW:]
    for at, path in recent:
        probs = _distribution(voice, prompt, voice.vocabulary.encode(at.decode()).ids, b"").logprobs
        values = probs[0].double().exp().tolist()
        span = answer[len(at) :]
        for token, p in enumerate(values):
            if p > 0 and table[token] is not None and table[token].startswith(span):
                mass += path * p
                if table[token] == span:
                    ended += path * p
    fresh = not recent or mass == 0.0
    visited.append(answer)
    paths.append(1.0 if fresh else ended)
    return 1.0 if fresh else min(1.0, ended / mass)


def close_enough(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
