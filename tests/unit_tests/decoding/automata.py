"""Small grammars by hand: automata over bytes, compiled for a vocabulary by walking every token."""

from __future__ import annotations

import string
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import RequestParams

LETTERS = frozenset(string.ascii_lowercase.encode())
DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton; None is the state of no return."""

    start: Hashable
    step: Callable[[Any, int], Hashable | None]
    accepting: Callable[[Any], bool]

    def run(self, data: bytes, state: Any = None) -> Any:
        state = self.start if state is None else state
        for byte in data:
            if state is None:
                return None
            state = self.step(state, byte)
        return state

    def holds(self, data: bytes) -> bool:
        state = self.run(data)
        return state is not None and self.accepting(state)


def finite(*texts: str) -> Automaton:
    """Exactly one of some texts."""
    words = [text.encode() for text in texts]

    def step(state: bytes, byte: int) -> bytes | None:
        longer = state + bytes([byte])
        return longer if any(word.startswith(longer) for word in words) else None

    return Automaton(b"", step, lambda state: state in words)


Part = tuple[frozenset[int], int, int]


def parts(*given: str | Part) -> Automaton:
    """Texts and runs of bytes ``(set, at least, at most)``; what follows a run must differ."""
    runs: list[Part] = []
    for part in given:
        runs += [(frozenset([b]), 1, 1) for b in part.encode()] if isinstance(part, str) else [part]

    def step(state: tuple[int, int], byte: int) -> tuple[int, int] | None:
        at, count = state
        while at < len(runs):
            allowed, least, most = runs[at]
            if byte in allowed and count < most:
                return at, count + 1
            if count < least:
                return None
            at, count = at + 1, 0
        return None

    def accepting(state: tuple[int, int]) -> bool:
        at, count = state
        return count >= runs[at][1] and all(least == 0 for _, least, _ in runs[at + 1 :])

    return Automaton((0, 0), step, accepting)


RECORD = parts('{"name": "', (LETTERS, 1, 12), '", "age": ', (DIGITS, 1, 3), "}")
SENTENCES = Automaton(  # words and full stops for ever; may end after a full stop
    "dot",
    lambda state, byte: {
        "dot": "word" if byte in LETTERS else "space" if byte == 32 else None,
        "word": "word" if byte in LETTERS else {32: "space", 46: "dot"}.get(byte),
        "space": "word" if byte in LETTERS else None,
    }[state],
    lambda state: state == "dot",
)
FOREIGN = finite("日本語の文章", "Ñandú", "naïve café", "日中友好")
"""Texts of several bytes a character."""


class Compiled:
    """An automaton over one vocabulary."""

    def __init__(self, automaton: Automaton, token_bytes: Sequence[bytes | None]) -> None:
        self.automaton = automaton
        self.token_bytes = token_bytes
        self.asked = 0
        self._allowed: dict[Any, torch.Tensor] = {}

    def matcher(self) -> Walk:
        return Walk(self)

    def allowed(self, state: Any) -> torch.Tensor:
        self.asked += 1
        if state not in self._allowed:
            self._allowed[state] = torch.tensor(
                [
                    bool(data) and self.automaton.run(data, state) is not None
                    for data in self.token_bytes
                ]
            )
        return self._allowed[state]


class Walk:
    """A matcher."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._state = compiled.automaton.start

    def allowed(self) -> torch.Tensor:
        return self._compiled.allowed(self._state)

    @property
    def may_end(self) -> bool:
        return self._compiled.automaton.accepting(self._state)

    def advance(self, data: bytes) -> bool:
        state = self._compiled.automaton.run(data, self._state)
        if state is None:
            return False
        self._state = state
        return True

    def mark(self) -> Any:
        return self._state

    def rollback(self, mark: Any) -> None:
        self._state = mark


def compile_for(voices: Sequence[Any], automaton: Automaton) -> tuple[Compiled, ...]:
    """One a voice; voices of equal vocabularies share one."""
    made: dict[str, Compiled] = {}
    for voice in voices:
        vocabulary = voice.vocabulary
        text = [
            None if role is not None else data
            for data, role in zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
        ]
        made.setdefault(vocabulary.content_hash, Compiled(automaton, text))
    return tuple(made[voice.vocabulary.content_hash] for voice in voices)


def admit(
    owner: Ensemble,
    texts: Sequence[str],
    request: RequestParams,
    automaton: Automaton | None = None,
    **more: Any,
) -> Decoding:
    """Open a request with what only chat asks for: a grammar, an opening, held sessions."""
    with owner.open(texts, request) as plain:
        task = plain._task
    if automaton is not None:
        more["grammar"] = compile_for(task.voices, automaton)
    return owner._engine.admit(replace(task, **more))
