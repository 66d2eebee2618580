"""Members whose words a test chooses: everything else (masks, fusion, caches) is the real thing.

An actor is a loaded member whose logits are raised for the token it shall say next. What it says
is decided by what it reads: a function of its whole prompt as text. Where that gives None, and
after the end of what it gave, the member says what it would have said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor

from langchain_ensemble.adapter import engines
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.vocab.vocabulary import Vocabulary

Says = Callable[[str], str | None]
"""Prompt, control tokens included -> reply, control tokens included."""

SURE = 300.0
"""What is added to a logit: no other member can outvote it, whatever the mean."""


class Plain(str):
    """A reply in which nothing is a control token, whatever it looks like."""


class Whole(Plain):
    """Such a reply, and the end after it."""


@dataclass(frozen=True)
class _Plan:
    start: int
    reply: tuple[int, ...]


class Actor:
    """A loaded member that says what it is told, and notes what it reads."""

    def __init__(self, member: Any, asks: Says) -> None:
        self._member, self._asks = member, asks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def session(self) -> _Session:
        return _Session(self._member.session(), self)

    def plan(self, prompt: Any) -> _Plan:
        tokenizer = self._member.tokenizer
        text = tokenizer.decode(list(prompt.ids), clean_up_tokenization_spaces=False)
        said = self._asks(text)
        if isinstance(said, Plain):
            end = [tokenizer.eos_token_id] if isinstance(said, Whole) else []
            ids: Sequence[int] = [*Vocabulary(tokenizer).encode(said).ids, *end]
        else:
            ids = tokenizer(said, add_special_tokens=False)["input_ids"] if said else ()
        return _Plan(len(prompt.ids), tuple(ids))


class _Session:
    chunk = None  # what it says depends on the whole prompt, which it must be told at once

    def __init__(self, session: Any, actor: Actor, plans: Sequence[_Plan] = ()) -> None:
        self._session, self._actor, self._plans = session, actor, list(plans)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def prefill(self, prompts: Any) -> Tensor:
        self._plans = [self._actor.plan(prompt) for prompt in prompts]
        return self._raised(self._session.prefill(prompts)[:, None])[:, 0]

    def collect(self, pending: Any) -> Tensor:
        return self._raised(self._session.collect(pending))

    def step(self, ids: Any, keep: int | None = 1) -> Tensor:
        return self.collect(self._session.submit(ids, keep))

    def select(self, rows: Sequence[int]) -> None:
        self._session.select(rows)
        self._plans = [self._plans[row] for row in rows]

    def fork(self, rows: Sequence[int]) -> _Session:
        return _Session(self._session.fork(rows), self._actor, [self._plans[r] for r in rows])

    def _raised(self, logits: Tensor) -> Tensor:
        """[B, keep, V], the last column after the last id of each row."""
        raised = logits.clone()
        for row, plan in enumerate(self._plans):
            for back in range(logits.shape[1]):
                at = self._session.lengths[row] - back - plan.start
                if 0 <= at < len(plan.reply):
                    raised[row, -1 - back, plan.reply[at]] = torch.max(logits) + SURE
        return raised


class Stage:
    """Engines whose members act; ``read[name]`` is every prompt that a member has read."""

    def __init__(self) -> None:
        self.says: dict[str, Says] = {}
        self.read: dict[str, list[str]] = {}

    def build(self, params: Any, fusion: Any) -> Ensemble:
        """In place of ``engines.build_engine``."""
        stage = self

        class _Staged(Ensemble):
            def _build(self, members: Any, on_progress: Any) -> Any:
                cast = [Actor(m, partial(stage._reply, m.name)) for m in members]
                return super()._build(cast, on_progress)  # type: ignore[arg-type]

        return _Staged(params, fusion=fusion)

    def _reply(self, name: str, text: str) -> str | None:
        self.read.setdefault(name, []).append(text)
        says = self.says.get(name)
        return says(text) if says else None

    def play(self, **says: Says) -> Mapping[str, list[str]]:
        """Give members their words and forget what was read.

        Args:
            says: By member.

        Returns:
            ``read``.
        """
        self.says = dict(says)
        self.read.clear()
        return self.read


def lines(*replies: str) -> Says:
    """Say one reply after the other, whatever was read; then the member's own words."""
    waiting = iter(replies)
    return lambda _: next(waiting, None)


def staged(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Let every engine that is built from now on have actors for members."""
    stage = Stage()
    monkeypatch.setattr(engines, "build_engine", stage.build)
    monkeypatch.setattr(engines, "_handles", WeakValueDictionary())
    return stage
