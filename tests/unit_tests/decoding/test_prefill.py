"""Prompts read in pieces, together and once: the same logits as read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.replay import ReplaySession
from langchain_ensemble.members.session import HFSession, SessionBase
from langchain_ensemble.params import EnsembleParams, RequestParams

CHUNK = 8
LONG = "Once upon a time there was a fox, a naïve café and 日本語, and they lived in a wood"
OTHER = "Tom and Lily"
PROMPTS = {
    "one": [LONG],
    "several": [LONG, OTHER, "a"],
    "alike": [LONG + " with", LONG, LONG + " without any other animal at all"],
    "equal": [LONG, LONG],
}


@pytest.fixture(scope="module")
def owner(pico: Callable[..., Path]) -> Iterator[Ensemble]:
    members = {kind: str(pico(kind)) for kind in ("llama", "gpt2")}
    with Ensemble(EnsembleParams(members=members, fusion="average", prefix_cache_gb=0)) as made:
        yield made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Ids of each row of every block that was submitted."""
    blocks: list[list[int]] = []
    submit = SessionBase.submit

    def counted(self: SessionBase, ids: Any, keep: int | None = 1) -> Any:
        blocks.append([len(row) for row in ids])
        return submit(self, ids, keep)

    monkeypatch.setattr(SessionBase, "submit", counted)
    return blocks


def task_of(owner: Ensemble, texts: Sequence[str], **request: Any) -> Task:
    with owner.open(texts, RequestParams(max_tokens=4, **request)) as decoding:
        return decoding._task


def opened(task: Task, tries: int = 999) -> list[torch.Tensor]:
    """Every voice's logits after the prompts."""
    loop = Loop(task)
    with torch.inference_mode():
        for _ in range(tries):
            if not loop.read:
                loop.read_on()
    assert loop.read
    logits = [voice.clone() for voice in loop._caches.logits]
    loop.close()
    return logits


def at_once(task: Task) -> list[torch.Tensor]:
    """The naive twin: each prompt by itself, in one forward."""
    rows: list[list[torch.Tensor]] = [[] for _ in task.voices]
    with torch.inference_mode():
        for prompt in [p for p in task.prompts for _ in range(task.request.n)]:
            for place, voice in enumerate(task.voices):
                session = voice.member.session()
                rows[place].append(session.prefill([prompt[place]])[0])
                session.close()
    return [torch.stack(voice) for voice in rows]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("which", PROMPTS)
def test_in_pieces_as_at_once(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch, which: str, n: int
) -> None:
    task = task_of(owner, PROMPTS[which], n=n)
    want = at_once(task)
    for chunk in (1, 3, CHUNK, 512):
        monkeypatch.setattr(HFSession, "chunk", chunk)
        torch.testing.assert_close(opened(task), want, atol=1e-5, rtol=1e-5)


def test_a_call_reads_one_piece_of_one_voice(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch, ran: list[list[int]]
) -> None:
    monkeypatch.setattr(HFSession, "chunk", CHUNK)
    task = task_of(owner, [LONG, OTHER])
    ran.clear()
    loop, calls = Loop(task), 0
    with torch.inference_mode():
        while not loop.read:
            before = len(ran)
            loop.read_on()
            calls += 1
            assert len(ran) == before + 1
            assert max(ran[-1]) <= CHUNK
        loop.read_on()  # nothing is left
    assert len(ran) == calls
    longest = [max(len(p.ids) for p in voice) for voice in zip(*task.prompts, strict=True)]
    assert calls == sum(-(-length // CHUNK) for length in longest)
    loop.close()


def test_what_prompts_begin_with_alike_is_read_once(owner: Ensemble, ran: list[list[int]]) -> None:
    task = task_of(owner, PROMPTS["alike"])
    ran.clear()
    opened(task)
    for place in range(2):
        ids = [prompt[place].ids for prompt in task.prompts]
        alike = 0
        while len({row[alike] for row in ids if alike < len(row)}) == 1 and alike < min(
            len(row) - 1 for row in ids
        ):
            alike += 1
        trunk, rest = ran[2 * place : 2 * place + 2]
        assert trunk == [alike]
        assert rest == [len(row) - alike for row in ids]


def test_answers_in_pieces_are_those_at_once(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RequestParams(max_tokens=8, temperature=0.8, seed=3, n=2)
    want = owner.generate(PROMPTS["alike"], request)
    monkeypatch.setattr(HFSession, "chunk", 5)
    got = owner.generate(PROMPTS["alike"], request)
    assert [[a.text for a in row] for row in got] == [[a.text for a in row] for row in want]
    assert [[a.usage for a in row] for row in got] == [[a.usage for a in row] for row in want]


def test_a_state_that_cannot_be_rolled_back_is_read_at_once(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch, ran: list[list[int]]
) -> None:
    session = HFMember.session

    def replayed(self: HFMember) -> Any:
        engine: Engine = session(self).engine  # type: ignore[attr-defined]
        return ReplaySession(engine, single=False)

    monkeypatch.setattr(HFSession, "chunk", CHUNK)
    monkeypatch.setattr(HFMember, "session", replayed)
    task = task_of(owner, PROMPTS["alike"])
    want = at_once(task)
    ran.clear()
    torch.testing.assert_close(opened(task, tries=2), want, atol=1e-5, rtol=1e-5)
    assert ran == [[len(p[place].ids) for p in task.prompts] for place in range(2)]


def test_what_cannot_be_read_is_refused_before_anything_runs(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFSession, "chunk", CHUNK)
    task = task_of(owner, [LONG])
    member = task.voices[0].member
    ran: list[int] = []
    monkeypatch.setattr(HFSession, "_run", lambda self, *args: ran.append(1))
    limit = member.context
    assert limit is not None
    for ids, said in (((), "has no ids"), ((5,) * (limit + 1), f"{limit} positions")):
        broken = replace(task, prompts=[[MemberPrompt(ids), *task.prompts[0][1:]]])
        with pytest.raises(ConfigError, match=said):
            opened(broken)
    assert not ran
