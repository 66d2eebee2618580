"""The decode loop's naive twin: no cache, no incremental tokenization, no tensors for boundaries.

Every step encodes the whole answer for every member, reads prompt and answer anew, weighs open
boundaries by looping over the vocabulary, asks a fresh matcher about every single token, and takes
the first maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from langchain_ensemble.constraints.grammar import CompiledGrammar
from langchain_ensemble.constraints.utf8 import REJECT, START, state_after
from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.decoding.task import Opening
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import member_distribution
from langchain_ensemble.members.base import MemberPrompt

WINDOW = 8
END, OPEN = -1, -2


@dataclass
class Chosen:
    """What the naive twin decoded."""

    answer: bytes = b""
    keys: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def naive_greedy(
    ensemble: Ensemble,
    prompt: str,
    steps: int,
    weights: list[float],
    boundaries: bool,
    contexts: tuple[str, ...] = (),
) -> tuple[bytes, list[int]]:
    """Greedy decoding of one prompt with every member a voice.

    Returns:
        The answer's bytes and the chosen union keys (-1: END, which stops).
    """
    got = naive_decode(ensemble, prompt, steps, weights, boundaries, contexts=contexts)
    return got.answer, got.keys


def naive_decode(
    ensemble: Ensemble,
    prompt: str,
    steps: int,
    weights: list[float],
    boundaries: bool,
    grammar: CompiledGrammar | None = None,
    opening: Opening | None = None,
    contexts: tuple[str, ...] = (),
) -> Chosen:
    """The same, under a grammar or with a way to open calls (key -2, which stops).

    ``contexts``: what each member, main first, reads before the prompt.
    """
    built: Any = ensemble._ready()
    told = contexts or ("",) * len(built.voices)
    prompts = [v.member.prompt(t + prompt) for v, t in zip(built.voices, told, strict=True)]
    out, main_ids = Chosen(), []
    lead = [
        b" " * int(p.text_start and v.vocabulary.dummy_prefix)
        for v, p in zip(built.voices, prompts, strict=True)
    ]
    hearing = _Hearing(built.voices, prompts, lead, boundaries, grammar)
    for step in range(steps):
        distributions, abstain, c = hearing.hear(out.answer, main_ids, step)
        rows = effective_weights(
            torch.tensor([weights]), torch.tensor([abstain]), torch.tensor([c], dtype=torch.float32)
        )
        first = lead[0] if step == 0 else b""
        values = _values(built.fuser(distributions, rows), built.key_bytes)
        if grammar is not None:
            values = _restricted(values, grammar, out.answer, first, built.key_bytes)
        if not values and _may_end(grammar, out.answer):
            values = {END: 1.0}
        values = values or _together(built, distributions, rows[0])
        if opening is not None and _is_text(out.answer) and not (grammar and step):
            legal = None
            if grammar is not None:
                legal = _legal(grammar, built.voices[0], out.answer, first, False)
            p = _p_open(built.voices[0], prompts[0], main_ids, opening, step, legal)
            values = {key: value * (1 - p) for key, value in values.items()} | {OPEN: p}
        key = _first_maximum(values)
        out.keys.append(key)
        out.logprobs.append(math.log(values[key]))
        if key < 0:
            return out
        out.answer += _told(built.key_bytes[key], first)
        if key < built.members[0].logits_width:
            main_ids = [*main_ids, key]
        else:
            whole = (lead[0] + out.answer).decode()
            main_ids = list(built.voices[0].vocabulary.encode(whole).ids)
    return out


def _first_maximum(values: dict[int, float]) -> int:
    """A tie goes to the smaller key, then to END, then to opening a call."""
    last = {END: 1, OPEN: 2}
    order = sorted(values, key=lambda key: (last.get(key, 0), key))
    return max(order, key=lambda key: values[key])


class _Hearing:
    """What every member says after an answer, read from scratch."""

    def __init__(
        self,
        voices: Any,
        prompts: list[MemberPrompt],
        lead: list[bytes],
        boundaries: bool,
        grammar: CompiledGrammar | None,
    ) -> None:
        self.voices, self.prompts, self.lead = voices, prompts, lead
        self.boundaries, self.grammar = boundaries, grammar
        self.visited: list[list[bytes]] = [[] for _ in voices]  # what each held at boundaries
        self.paths: list[list[float]] = [[] for _ in voices]
        self.said: list[list[torch.Tensor]] = [[] for _ in voices]

    def hear(
        self, answer: bytes, main_ids: list[int], step: int
    ) -> tuple[list[Any], list[bool], list[float]]:
        """Every member's distribution, whether it abstains, and its c_i."""
        distributions, abstain, c = [], [], []
        text = _is_text(answer)
        for place, voice in enumerate(self.voices):
            held = self.lead[place] + answer if step else b""
            apart = step == 0 and self.lead[place] != self.lead[0]
            ids = main_ids if voice.verbatim else voice.vocabulary.encode(_whole(held)).ids
            legal = None
            if self.grammar is not None:
                lead = b"" if step else self.lead[place]
                legal = _legal(self.grammar, voice, answer, lead, apart)
            where = b"" if place else answer
            got = _distribution(voice, self.prompts[place], ids, where, legal)
            distributions.append(got)
            abstain.append((place > 0 and (not text or apart)) or bool(got.abstain[0]))
            weigh = self.boundaries and not voice.verbatim and text
            c.append(self._boundary(place, held, got) if weigh else 1.0)
        return distributions, abstain, c

    def _boundary(self, place: int, held: bytes, got: Any) -> float:
        masked = None if self.grammar is None else self.said[place]
        before = (self.visited[place], self.paths[place], masked)
        c = _boundary(self.voices[place], self.prompts[place], held, *before)
        self.said[place].append(got.logprobs)
        return c


def _is_text(answer: bytes) -> bool:
    return state_after(answer) == START


def _values(fused: Any, key_bytes: Any) -> dict[int, float]:
    """Probability of every key that has any, and of END."""
    probs = fused.logprobs[0].double().exp().tolist()
    keys = range(len(probs)) if fused.keys is None else fused.keys[0].tolist()
    values = {int(k): p for k, p in zip(keys, probs, strict=True) if p > 0}
    if float(fused.end[0]) > -math.inf:
        values[END] = math.exp(float(fused.end[0]))
    return values


def _told(data: bytes, lead: bytes) -> bytes:
    """A key's bytes as bytes of the answer: a leading space of the tokenizer's own is none."""
    return data[1:] if lead and data.startswith(b" ") else data


def _accepts(grammar: CompiledGrammar, data: bytes) -> bool:
    return not data or grammar.matcher().advance(data)


def _may_end(grammar: CompiledGrammar | None, answer: bytes) -> bool:
    if grammar is None:
        return True
    matcher = grammar.matcher()
    return (not answer or matcher.advance(answer)) and matcher.may_end


def _legal(
    grammar: CompiledGrammar, voice: Any, answer: bytes, lead: bytes, apart: bool
) -> torch.Tensor:
    """[V] bool by asking about every id."""
    table, roles = voice.vocabulary.token_bytes, voice.vocabulary.token_roles
    legal = [
        bool(data) and role is None and not apart and _accepts(grammar, answer + _told(data, lead))
        for data, role in zip(table, roles, strict=True)
    ]
    for end in voice.vocabulary.end_ids:
        legal[end] = _may_end(grammar, answer)
    return torch.tensor(legal)


def _restricted(
    values: dict[int, float], grammar: CompiledGrammar, answer: bytes, lead: bytes, key_bytes: Any
) -> dict[int, float]:
    kept = {
        key: p
        for key, p in values.items()
        if (_may_end(grammar, answer) if key == END else False)
        or (key >= 0 and _accepts(grammar, answer + _told(key_bytes[key], lead)))
    }
    total = sum(kept.values())
    return {key: p / total for key, p in kept.items()}


def _together(built: Any, distributions: list[Any], weights: torch.Tensor) -> dict[int, float]:
    """The weighted mean over all keys, where the fusion has nothing left."""
    values: dict[int, float] = {}
    for voice, said, weight in zip(built.voices, distributions, weights.tolist(), strict=True):
        for token, p in enumerate(said.logprobs[0].double().exp().tolist()):
            key = int(voice.keys.to_union[token])
            if p > 0 and key >= 0 and weight > 0:
                values[key] = values.get(key, 0.0) + weight * p
    total = sum(values.values())
    return {key: p / total for key, p in values.items()}


def _p_open(
    main: Any,
    prompt: MemberPrompt,
    ids: list[int],
    opening: Opening,
    step: int,
    legal: torch.Tensor | None = None,
) -> float:
    """Main's probability of opening a call here, from its bare logits.

    Under a grammar an id that opens stands beside what is ``legal``; a text is its path's
    probability among all that main may write.
    """
    if opening.literal:
        if step:
            return 0.0
        p, said = 1.0, b""
        for number, token in enumerate(opening.literal):
            probs = _main_probs(main, prompt, opening.literal[:number], said, ())
            p *= probs[token]
            said += main.vocabulary.token_bytes[token]
        return p
    probs = _main_probs(main, prompt, ids, b"", opening.ids, legal)
    return sum(probs[token] for token in opening.ids)


def _main_probs(
    main: Any, prompt: MemberPrompt, ids: Any, said: bytes, more: Any, legal: Any = None
) -> list[float]:
    """Softmax over main's text ids (those that are legal), end ids and some more."""
    session = main.member.session()
    logits = session.prefill([MemberPrompt((*prompt.ids, *ids))])[0].double()
    session.close()
    roles = main.vocabulary.token_roles
    table = main.vocabulary.token_bytes
    start = state_after(said)
    ends = main.vocabulary.end_ids if start == START else ()
    text = [
        role is None and bool(data) and state_after(data, start) != REJECT
        for data, role in zip(table, roles, strict=True)
    ]
    good = torch.tensor([is_text or n in ends for n, is_text in enumerate(text)])
    good = good if legal is None else good & legal
    good[list(more)] = True
    probs = torch.softmax(logits.masked_fill(~good, -torch.inf), -1)
    return [float(p) for p in probs]


def _whole(answer: bytes) -> str:
    return answer.decode("utf-8", errors="ignore")


def _distribution(
    voice: Any,
    prompt: MemberPrompt,
    ids: list[int],
    answer: bytes,
    legal: torch.Tensor | None = None,
) -> Any:
    session = voice.member.session()
    logits = session.prefill([MemberPrompt((*prompt.ids, *ids))])
    session.close()
    mask = voice.allowed[state_after(answer)]
    return member_distribution(logits, voice.keys, mask if legal is None else mask & legal)


def _boundary(
    voice: Any,
    prompt: MemberPrompt,
    answer: bytes,
    visited: list[bytes],
    paths: list[float],
    said: list[torch.Tensor] | None = None,
) -> float:
    """c_i by the formula, over the last boundaries, with Python sums.

    ``said`` is what the member said at each boundary; None asks it again.
    """
    table = voice.vocabulary.token_bytes
    mass = ended = 0.0
    recent = list(zip(visited, paths, strict=True))[-WINDOW:]
    for number, (at, path) in enumerate(recent, start=len(visited) - len(recent)):
        ids = voice.vocabulary.encode(at.decode()).ids
        row = _distribution(voice, prompt, ids, b"").logprobs if said is None else said[number]
        values = row[0].double().exp().tolist()
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
