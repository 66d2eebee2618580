"""Instruments of ``selftest``: an ensemble that can be looked into, and members made to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from langchain_ensemble.building import Progress
from langchain_ensemble.decoding.protocols import VocabularyLike
from langchain_ensemble.decoding.records import Finish, TokenRecord
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.base import LoadedMember, MemberSession
from langchain_ensemble.params import EnsembleParams, RequestParams

Wrap = Callable[[int, LoadedMember], LoadedMember]
"""(place, member) -> what takes the member's place; main's place is 0."""


class Probe(Ensemble):
    """An ensemble whose members may be wrapped before it is built, and whose rows can be read."""

    def __init__(self, params: EnsembleParams, wrap: Wrap | None = None) -> None:
        """Check the settings; every answer is read afresh."""
        super().__init__(params.model_copy(update={"prefix_cache_gb": 0.0}))
        self._wrap = wrap

    def _build(self, members: Sequence[LoadedMember], on_progress: Progress | None) -> Any:
        if self._wrap is not None:
            members = [self._wrap(place, member) for place, member in enumerate(members)]
        return super()._build(members, on_progress)

    @property
    def vocabularies(self) -> list[VocabularyLike]:
        """The members' vocabularies, main first; loads the weights."""
        with self.open([" "], RequestParams(max_tokens=1)) as decoding:
            return [track.vocabulary for track in decoding.rows[0].tracks]

    def rows(self, prompts: Sequence[str], max_tokens: int) -> list[Row]:
        """Decode prompts greedily, as one batch, and give the finished rows."""
        with self.open(list(prompts), RequestParams(max_tokens=max_tokens)) as decoding:
            while not decoding.done:
                decoding.step()
            return decoding.rows

    def row(self, prompt: str, max_tokens: int) -> Row:
        """Decode one prompt."""
        return self.rows([prompt], max_tokens)[0]


def ids_of(records: Sequence[TokenRecord], finish: Finish | None) -> list[int | None]:
    """Main's ids of a row, END as None; a voice alone gives an id or END at every step."""
    ended = finish is not None and finish.reason == "stop"
    return [record.id for record in records[:-1]] + [None if ended else records[-1].id]


class Clock:
    """How many logits main has given; all members of one decode read the same."""

    def __init__(self) -> None:
        """Start at zero."""
        self.time = 0


class Ending:
    """A member that says what it says, and from some step on only one of its end ids."""

    def __init__(
        self, member: LoadedMember, clock: Clock, end_id: int, after: int, leads: bool
    ) -> None:
        """Wrap a member; ``leads``: it is main and moves the clock."""
        self._member, self._clock, self._leads = member, clock, leads
        self._end_id, self._after = end_id, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def session(self) -> MemberSession:
        """A session whose logits are forced."""
        return cast(MemberSession, _EndingSession(self._member.session(), self.force))

    def force(self, logits: Tensor) -> Tensor:
        """Logits [..., V_i] as they are, or all on the end id."""
        if self._leads:
            self._clock.time += 1
        if self._clock.time <= self._after:
            return logits
        forced = torch.full_like(logits, -1e4)
        forced[..., self._end_id] = 0.0
        return forced


class _EndingSession:
    """Hands everything on, but for the logits."""

    def __init__(self, session: MemberSession, force: Callable[[Tensor], Tensor]) -> None:
        self._session, self._force = session, force

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def prefill(self, prompts: Any) -> Tensor:
        return self._force(self._session.prefill(prompts))

    def collect(self, pending: Any) -> Tensor:
        return self._force(self._session.collect(pending))

    def step(self, ids: Any, keep: int | None = 1) -> Tensor:
        return self.collect(self._session.submit(ids, keep))
