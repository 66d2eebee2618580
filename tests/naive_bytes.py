"""The naive twin of decoding over bytes: Python loops over whole vocabularies, no cache, no tree.

Every step encodes the whole answer for every member, reads prompt and answer anew, adds up the keys
that start with each string, and lays the step's choices out one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from langchain_ensemble.constraints.utf8 import START, state_after
from langchain_ensemble.decoding.path_tracker import BOUNDARIES
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.bytes_walk import LONGEST, LOOSE
from tests.naive import _distribution, _whole

END = -1
TINY = 1.1754943508222875e-38

Mean = float | Callable[[list[dict[int, float]]], dict[int, float]]
"""A power, or what is made of all members' distributions where all of them speak."""


@dataclass
class Member:
    """One member and the boundaries at which it stood: what it held, W, what it said, END."""

    voice: Any
    prompt: Any
    lead: bytes
    past: list[tuple[bytes, float, dict[bytes, float], float]] = field(default_factory=list)
    held: bytes = b""
    ends: bool = False

    def go_on(self, answer: bytes, begun: bool, ids: list[int], stands: bool) -> None:
        """Come to the end of an answer."""
        self.held = self.lead + answer
        rest = [(at, w, keys, end, self.held[len(at) :]) for at, w, keys, end in self.past]
        alive = [one for one in rest if any(key.startswith(one[4]) for key in one[2])]
        through = sum(w * _below(keys, span) for _, w, keys, _, span in alive)
        ended = sum(w * keys.get(span, 0.0) for _, w, keys, _, span in alive)
        scale = through if through > 0 else 1.0
        self.past = [(at, w / scale, keys, end) for at, w, keys, end, _ in alive]
        self.ends = stands
        if not stands:
            return
        said = _distribution(self.voice, self.prompt, ids, answer if self.lead == b"" else b"")
        table = self.voice.vocabulary.token_bytes
        probs = said.logprobs[0].double().exp().tolist()
        keys = {table[i]: p for i, p in enumerate(probs) if table[i] and said.logprobs[0, i] > -1e9}
        here = self.held if begun else b""
        weight = ended / scale if through > 0 else 1.0
        self.past = [*self.past[-BOUNDARIES + 1 :]]
        self.past.append((here, weight, keys, float(said.end[0].double().exp())))

    def next(self, more: bytes) -> tuple[dict[int, float], float]:
        """Weight of each byte (and END) after some more bytes; the share that ended there."""
        found: dict[int, float] = {}
        ended = 0.0
        for at, w, keys, _ in self.past:
            span = self.held[len(at) :] + more
            for key, p in keys.items():
                if key.startswith(span) and len(key) > len(span):
                    found[key[len(span)]] = found.get(key[len(span)], 0.0) + w * p
                elif key == span:
                    ended += w * p
        whole = sum(found.values()) + ended
        if not more and self.ends:
            found[END] = self.past[-1][1] * self.past[-1][3]
        return found, ended / whole if whole else 0.0


def _below(keys: dict[bytes, float], span: bytes) -> float:
    return sum(p for key, p in keys.items() if key.startswith(span))


def _mixed(said: list[dict[int, float]], weights: list[float], power: Mean) -> dict[int, float]:
    """The power mean of normalised distributions; who says nothing gives its weight away."""
    speaks = [bool(sum(one.values())) for one in said]
    if callable(power):
        each = [
            {c: p / sum(one.values()) for c, p in one.items()} for one in said if sum(one.values())
        ]
        return power(each) if all(speaks) else each[0] if speaks[0] else {}
    shares = [w if on else 0.0 for w, on in zip(weights, speaks, strict=True)]
    if not sum(shares):
        return {}
    shares = [share / sum(shares) for share in shares]
    found: dict[int, float] = {}
    for symbol in {symbol for one in said for symbol in one}:
        parts = [
            (share, one.get(symbol, 0.0) / sum(one.values()))
            for share, one in zip(shares, said, strict=True)
            if share
        ]
        if not any(p for _, p in parts):
            continue
        if power == 0:
            found[symbol] = math.exp(sum(s * math.log(max(p, TINY)) for s, p in parts))
        else:
            found[symbol] = sum(s * p**power for s, p in parts) ** (1 / power)
    total = sum(found.values())
    return {symbol: p / total for symbol, p in found.items()}


def naive_bytes(
    ensemble: Ensemble, prompt: str, steps: int, weights: list[float], power: Mean = 1.0
) -> tuple[bytes, list[bytes]]:
    """Greedy decoding of one prompt: the answer, and what each step added (b"": END)."""
    built: Any = ensemble._ready()
    prompts = [voice.member.prompt(prompt) for voice in built.voices]
    members = [
        Member(v, p, b" " * int(p.text_start and v.vocabulary.dummy_prefix))
        for v, p in zip(built.voices, prompts, strict=True)
    ]
    width = built.members[0].logits_width
    held = {
        key: number
        for number, key in enumerate(built.key_bytes)
        if key and (number < width or state_after(key) == START)
    }
    answer, given, main_ids = b"", [], []
    for step in range(steps):
        whole = state_after(answer) == START
        for place, member in enumerate(members):
            ids = member.voice.vocabulary.encode(_whole(member.lead + answer)).ids if step else []
            if place == 0 and not whole:
                ids = main_ids
            member.go_on(answer, step > 0, list(ids), stands=whole or place == 0)
        key = _choice(members, weights, power, held)
        given.append(key)
        if not key:
            break
        before = (
            main_ids
            if not whole
            else members[0].voice.vocabulary.encode(_whole(members[0].lead + answer)).ids
            if step
            else []
        )
        answer += key
        main_ids = [*before, held[key]] if held[key] < width else []
    return answer, given


def _choice(
    members: list[Member], weights: list[float], power: Mean, held: dict[bytes, int]
) -> bytes:
    """Lay out one step's choices and take the likeliest."""
    known = {key[:n] for key in held for n in range(1, len(key) + 1)}
    first = _mixed([m.next(b"")[0] for m in members], weights, power)
    end = first.pop(END, 0.0)
    choices = {bytes([c]): p for c, p in first.items() if bytes([c]) in known}
    for _ in range(LONGEST):
        bare = {x: p for x, p in choices.items() if x not in held and p > LOOSE / 10}
        leader = max(bare or choices, key=lambda x: choices[x])
        told = [m.next(leader) for m in members]
        loose = sum(w * share for w, (_, share) in zip(weights, told, strict=True))
        mixed = _mixed([one for one, _ in told], weights, power)
        more = {leader + bytes([c]): p for c, p in mixed.items() if leader + bytes([c]) in known}
        kept = sum(more.values())
        more = {x: p / kept * choices[leader] for x, p in more.items()}
        others = max([end, *(p for x, p in choices.items() if x != leader)])
        leads = bool(more) and max(more.values()) >= others and choices[leader] >= end
        if not bare and not (leads and loose <= LOOSE and kept >= 1 - LOOSE):
            break
        del choices[leader]
        choices |= more
    choices = {x: p for x, p in choices.items() if x in held}
    best = min(choices, key=lambda x: (-choices[x], held[x]))
    return best if choices[best] >= end else b""
