"""Forwards a token with drafts, at scripted acceptance: members whose words are drawn, not learned.

Every member is asked as real ones are (sessions, roll-back, rows), but what it says is scripted: at
each position the fused choice is drawn, and a member's own best key is that one with probability
``a``, else another. So a proposal is accepted with probability ``a``, whoever makes it.

The bar is ``1.03 x (N - (N - 1) a)`` forwards a token for ``N`` equal members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from common import Row, clock_of, one_thread, save
from torch import Tensor
from toys import ensemble_of, llama, opened, vocabulary

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.session import SessionBase

TOKENS = 1200
PLACES = 1 << 61


class ScriptedSession(SessionBase):
    """Rows of ids; logits follow from the ids read so far and from who is asked."""

    def __init__(self, engine: Engine, number: int, acceptance: float, forwards: list[int]) -> None:
        self.engine, self.lengths = engine, []
        self._number, self._acceptance, self._forwards = number, acceptance, forwards
        self._states: list[list[int]] = []

    def _open(self, rows: int) -> None:
        self._states = [[1] for _ in range(rows)]
        self.lengths = [0] * rows

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        self._forwards[0] += 1
        logits = torch.full((len(ids), keep, self.engine.width), -20.0)
        for row, new in enumerate(ids):
            states = self._states[row]
            del states[self.lengths[row] + 1 :]
            prompt = len(states) == 1  # the members' prompts differ, and nothing depends on them
            for token in new:
                states.append(
                    1 if prompt else (states[-1] * 1_000_003 + token * 7919 + 12_345) % PLACES
                )
            for back in range(min(keep, len(new))):
                logits[row, keep - 1 - back] = self._said(states[-1 - back])
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        return logits

    def _said(self, state: int) -> Tensor:
        words = self.engine.width - 300
        logits = torch.full((self.engine.width,), -20.0)
        logits[300 + state // 7 % words] = 0.0
        drawn = (state * 6_364_136_223_846_793_005 + self._number * 72_057_594_037_927_931) % PLACES
        if drawn / PLACES > self._acceptance:
            logits[300 + drawn // 11 % words] = 0.2  # better for this member, worse for all
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop, reorder or repeat rows."""
        self._states = [list(self._states[row]) for row in rows]
        self.lengths = [self.lengths[row] for row in rows]

    def fork(self, rows: Sequence[int]) -> ScriptedSession:
        """A second session over copies of some rows."""
        made = ScriptedSession(self.engine, self._number, self._acceptance, self._forwards)
        made._states = [list(self._states[row]) for row in rows]
        made.lengths = [self.lengths[row] for row in rows]
        return made

    def close(self) -> None:
        """Forget all."""
        self._states, self.lengths = [], []


class ScriptedMember:
    """A member of which only the sessions are another's."""

    def __init__(self, member: Any, number: int, acceptance: float, forwards: list[int]) -> None:
        self._member, self._script = member, (number, acceptance, forwards)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def session(self) -> ScriptedSession:
        """A fresh, empty session."""
        return ScriptedSession(self._member.session().engine, *self._script)


def scripted(count: int, acceptance: float, forwards: list[int]) -> Ensemble:
    """An ensemble of ``count`` scripted members with one vocabulary."""
    tokenizer = vocabulary(2000)
    made = ensemble_of(
        {f"m{i}": (llama(2000, hidden=16, layers=1), tokenizer) for i in range(count)},
        fusion={"name": "average", "mean": "arithmetic"},
        prefix_cache_gb=0,
    )
    built = made._ready()
    voices = tuple(
        replace(voice, member=ScriptedMember(voice.member, number, acceptance, forwards))
        for number, voice in enumerate(built.voices)
    )
    made._built = replace(built, voices=voices)
    return made


def forwards_per_token(
    count: int, acceptance: float, speculation: str, rows: int = 1, tokens: int = TOKENS
) -> tuple[float, list[str]]:
    """Decode; give forwards a token of one row, without prefill, and the answers."""
    forwards = [0]
    ensemble = scripted(count, acceptance, forwards)
    with opened(
        ensemble, 8, rows, max_tokens=tokens, speculation=speculation, temperature=0.0
    ) as decoding:
        answers = decoding.answers()
    return (forwards[0] - count) / tokens, [answer.text for row in answers for answer in row]


def loss(tokens: int = 200, rounds: int = 7) -> tuple[Row, Row]:
    """Time of ``"auto"`` over that of plain decoding where nothing that is drafted is chosen."""
    ensemble = ensemble_of(
        {
            "a": (llama(8000, hidden=128, layers=4), vocabulary(8000)),
            "b": (llama(6000, hidden=128, layers=4, seed=1), vocabulary(6000, 1)),
        },
        fusion="average",
        prefix_cache_gb=0,
    )

    clock = clock_of()

    def per_token(speculation: str) -> float:
        """Seconds a token of long answers; END is one of thousands of unlikely keys."""
        seconds, count = 0.0, 0
        while count < tokens:
            begun = clock()
            with opened(
                ensemble, 64, max_tokens=tokens, speculation=speculation, temperature=1.0
            ) as decoding:
                ((answer,),) = decoding.answers()
            if len(answer.tokens) > tokens // 2:
                seconds, count = seconds + clock() - begun, count + len(answer.tokens)
        return seconds / count

    taken = [{how: per_token(how) for how in ("off", "auto", "on")} for _ in range(rounds)]
    ratio = {how: median(one[how] / one["off"] for one in taken) for how in ("auto", "on")}
    where = f"two random models, sampling, {tokens} tokens"
    return (
        Row("time of auto / plain where drafts fail", where, ratio["auto"], 1.03, "x"),
        Row("time of on / plain where drafts fail", where, ratio["on"], unit="x"),
    )


def main() -> None:
    """Measure, print, save."""
    one_thread()
    rows = list(loss())
    for count in (2, 3):
        for acceptance in (0.6, 0.7, 0.8, 0.9):
            plain, told = forwards_per_token(count, acceptance, "off")
            fast, same = forwards_per_token(count, acceptance, "on")
            assert same == told, "drafts changed the answer"
            floor = count - (count - 1) * acceptance
            where = f"{count} members, acceptance {acceptance}"
            rows.append(Row("forwards a token, drafts", where, fast, 1.03 * floor, ""))
            rows.append(Row("forwards a token, plain", where, plain, unit=""))
    save("speculation", rows)


if __name__ == "__main__":
    main()
