"""Sessions that run as rows of one forward give what they give alone, whatever is done to them.

Logits are compared to 1e-5 of the largest, with the same argmax: a matrix product over more rows
adds in another order, so equal bits are no law of the arithmetic.
"""

from __future__ import annotations

import gc
import random
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleWarning, MemberError, MemoryLimitError
from langchain_ensemble.members import pool as pooling
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.capture import CallAgain
from langchain_ensemble.members.graphs import Static
from langchain_ensemble.members.pool import Pool
from langchain_ensemble.members.session import TOGETHER, HFSession
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.unit_tests.decoding.automata import admit
from tests.unit_tests.members import families
from tests.unit_tests.members.test_sessions import member, some_ids

FAMILIES = ["llama", "gpt-neox", "qwen2", "mistral-sliding"]


def session(
    name: str, pool: Pool | None, *rows: list[int], static: Static | None = None
) -> HFSession:
    """A session over a family's model: of a pool, or alone."""
    engine = member(name).session().engine  # type: ignore[attr-defined]
    made = HFSession(replace(engine, static=static), pool)
    made.prefill([MemberPrompt(tuple(row)) for row in rows])
    return made


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert torch.equal(got.argmax(-1), want.argmax(-1))


class Twins:
    """A session of a pool, and one that runs alone and is told the same."""

    def __init__(self, pooled: HFSession, alone: HFSession) -> None:
        self.pooled, self.alone = pooled, alone
        self.waiting: list[tuple[Any, Any, list[list[int]]]] = []

    def submit(self, rng: random.Random) -> None:
        ids = [some_ids(rng, rng.choice([0, 1, 1, 1, 2, 5])) for _ in self.alone.lengths]
        if rng.random() < 0.05:
            ids[0] = some_ids(rng, TOGETHER + 1)
        keep = rng.choice([1, 1, 3, None])
        self.waiting.append((self.pooled.submit(ids, keep), self.alone.submit(ids, keep), ids))
        assert self.pooled.lengths == self.alone.lengths

    def collect(self) -> None:
        for step, own, ids in self.waiting:
            got, want = self.pooled.collect(step), self.alone.collect(own)
            assert got.shape == want.shape
            for row, new in enumerate(ids):
                known = min(len(new), got.shape[1])
                if known:
                    same(got[row, -known:], want[row, -known:])
        self.waiting = []

    def change(self, rng: random.Random) -> None:
        rows = range(len(self.alone.lengths))
        if rng.random() < 0.5:
            lengths = [max(1, n - rng.choice([0, 1, 3])) for n in self.alone.lengths]
            for one in (self.pooled, self.alone):
                one.truncate(lengths)
        else:
            chosen = rng.choice([list(rows), [*rows][::-1], [rows[0]], [0, 0, rows[-1]]])
            for one in (self.pooled, self.alone):
                one.select(chosen)
        assert self.pooled.lengths == self.alone.lengths

    def fork(self) -> Twins:
        last = len(self.alone.lengths) - 1
        return Twins(self.pooled.fork([last]), self.alone.fork([last]))


def act(
    rng: random.Random, name: str, pool: Pool, twins: list[Twins], static: Static | None = None
) -> None:
    """One act of a random script: somebody joins, leaves, steps or is changed."""
    what = rng.choice(["join", "submit", "submit", "submit", "collect", "change", "leave"])
    if not twins or (what == "join" and len(twins) < 5):
        rows = [some_ids(rng, rng.choice([1, 4, 20])) for _ in range(rng.choice([1, 1, 3]))]
        pooled = session(name, pool, *rows, static=static)
        twins.append(Twins(pooled, session(name, None, *rows)))
    elif what == "submit":
        for twin in rng.sample(twins, rng.randrange(1, len(twins) + 1)):
            twin.submit(rng)
    elif what == "collect":
        rng.choice(twins).collect()
    elif what == "change":
        rng.choice(twins).change(rng)
    elif what == "leave":
        leaver = twins.pop(rng.randrange(len(twins)))
        if rng.random() < 0.5:
            twins.append(leaver.fork())
        leaver.pooled.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_random_scripts_give_what_the_sessions_give_alone(
    name: str, acceptance_scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "PATIENCE", 2)
    copied = 0
    for seed in range(2 * acceptance_scale):
        rng = random.Random(f"{name} {seed}")
        pool, twins = Pool(), list[Twins]()
        for _ in range(40):
            act(rng, name, pool, twins)
            if any(max(twin.alone.lengths) > 180 for twin in twins):
                break
        for twin in twins:
            twin.collect()
        copied += pool.copied
    assert copied > 0


def test_random_scripts_over_static_forwards(acceptance_scale: int) -> None:
    for seed in range(2 * acceptance_scale):
        rng = random.Random(seed)
        pool, twins = Pool(), list[Twins]()
        static = Static("graphs", CallAgain())
        for _ in range(30):
            act(rng, "llama", pool, twins, static)
        for twin in twins:
            twin.collect()
        assert static.off is None
        assert static.replayed > 0


def test_members_that_run_in_other_ways_are_not_joined() -> None:
    pool = Pool()
    static = Static("graphs", CallAgain())
    one, other = session("llama", pool, [5, 6]), session("llama", pool, [5, 6], static=static)
    together(one, other)
    assert one.home is not other.home


def test_sessions_that_step_together_are_one_forward_and_are_copied_once() -> None:
    pool = Pool()
    sessions = [session("llama", pool, [5, 6, 7 + n]) for n in range(4)]
    assert (pool.forwards, pool.rows, pool.copied) == (4, 4, 0)
    for _ in range(10):
        steps = [one.submit([[9]]) for one in sessions]
        for one, step in zip(sessions, steps, strict=True):
            one.collect(step)
    assert (pool.forwards, pool.rows, pool.columns) == (14, 44, 12 + 40)
    assert pool.copied == 3
    assert len({one.home for one in sessions}) == 1


def test_who_steps_alone_moves_nothing() -> None:
    pool = Pool()
    one = session("llama", pool, [5, 6], [7])
    home = one.home
    for _ in range(20):
        one.step([[3], [4]])
    assert one.home is home
    assert (pool.copied, pool.forwards, pool.rows) == (0, 21, 42)


def together(*sessions: HFSession) -> None:
    for one, step in [(one, one.submit([[9]] * len(one.lengths))) for one in sessions]:
        one.collect(step)


def test_a_few_busy_rows_leave_the_idle_ones_behind() -> None:
    pool = Pool()
    sessions = [session("llama", pool, [5, 6, 7 + n]) for n in range(4)]
    together(*sessions)
    rows = pool.rows
    together(sessions[0])
    assert pool.rows == rows + 1
    together(*sessions)
    assert len({one.home for one in sessions}) == 1


def test_idle_rows_are_carried_for_a_while_only() -> None:
    pool = Pool()
    busy, idle = (session("llama", pool, [5, 6, 7 + n]) for n in range(2))
    together(busy, idle)
    for _ in range(pooling.PATIENCE):
        together(busy)
    assert busy.home is idle.home
    rows = pool.rows
    together(busy)
    assert pool.rows == rows + 1
    together(busy, idle)
    assert busy.home is idle.home


def test_holes_are_filled_and_dropped() -> None:
    pool = Pool()
    sessions = [session("llama", pool, [5, 6, 7 + n]) for n in range(5)]
    together(*sessions)
    home = sessions[0].home
    sessions[1].close()
    together(sessions[0], *sessions[2:])
    assert (sessions[0].home, home.rows, home.live()) == (home, 5, 4)
    other = session("llama", pool, [8])
    together(sessions[0], *sessions[2:], other)
    assert (other.home, home.rows, other.rows) == (home, 5, [1])
    for one in sessions[2:]:
        one.close()
    assert [one.home.rows for one in (sessions[0], other)] == [2, 2]
    assert other.home is sessions[0].home is not home


def test_a_freed_row_leaves_no_nan_behind() -> None:
    pool = Pool()
    sessions = [session("llama", pool, [5, 6, 7 + n]) for n in range(5)]
    together(*sessions)
    with torch.inference_mode():
        for layer in sessions[0].home.cache.layers:
            layer.keys[sessions[1].rows[0]] = float("nan")
            layer.values[sessions[1].rows[0]] = float("nan")
    sessions[1].close()
    other = session("llama", pool, [8])
    together(sessions[0], *sessions[2:], other)
    step = sessions[0].submit([[3]])
    got = other.step([[4, 5]])
    assert not sessions[0].collect(step).isnan().any()
    alone = session("llama", None, [8])
    alone.step([[9]])
    same(got, alone.step([[4, 5]]))


def test_one_long_row_does_not_make_all_others_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "SMALL", 64)
    pool = Pool()
    long = session("llama", pool, [5] * 200)
    short = [session("llama", pool, [5, 6]) for _ in range(6)]
    together(long, *short)
    assert len({one.home for one in (long, *short)}) == 2
    assert len({one.home for one in short[1:]}) == 1


def test_views_of_one_text_and_of_none_still_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "SMALL", 64)
    pool = Pool()
    views = [session("llama", pool, [5] * 200), session("llama", pool, [5, 6])]
    together(*views)
    assert views[0].home is views[1].home


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pooling, "run", broken)


def test_an_error_reaches_all_that_took_part_and_changes_nobody() -> None:
    pool = Pool()
    first, second, third = (session("llama", pool, [5, 6, 7 + n]) for n in range(3))
    together(first, second, third)
    with pytest.MonkeyPatch.context() as patch:
        fails(patch, torch.OutOfMemoryError("tried to allocate 3 GiB"))
        steps = [first.submit([[4]]), second.submit([[4, 5]])]
        assert (first.lengths, second.lengths) == ([5], [6])
        for one, step in zip((first, second), steps, strict=True):
            with pytest.raises(MemoryLimitError, match=r"step of 1 rows x \d ids after 4 cached"):
                one.collect(step)
            assert one.lengths == [4]
        late = first.submit([[4]])
        with pytest.raises(MemoryLimitError):
            first.truncate([4])  # what waits is run before anything else
        assert first.lengths == [4]
        with pytest.raises(MemoryLimitError):
            first.collect(late)
    alone = session("llama", None, [5, 6, 8])
    alone.step([[9]])
    same(second.step([[3]]), alone.step([[3]]))
    assert third.lengths == [4]


def test_an_interrupt_loses_nothing() -> None:
    pool = Pool()
    first, second = (session("llama", pool, [5, 6, 7 + n]) for n in range(2))
    steps = [first.submit([[4]]), second.submit([[4]])]
    with pytest.MonkeyPatch.context() as patch:
        fails(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            first.collect(steps[0])
    alone = session("llama", None, [5, 6, 8])
    same(second.collect(steps[1]), alone.step([[4]]))
    assert first.collect(steps[0]).shape[0] == 1


def test_a_closed_session_drops_its_step_and_the_others_run() -> None:
    pool = Pool()
    first, second = (session("llama", pool, [5, 6, 7 + n]) for n in range(2))
    lost, step = first.submit([[4]]), second.submit([[4]])
    first.close()
    rows = pool.rows
    second.collect(step)
    assert pool.rows == rows + 1
    with pytest.raises(MemberError, match="closed before the step ran"):
        first.collect(lost)


def test_what_is_done_between_submit_and_collect_loses_nothing() -> None:
    for act in ("truncate", "select", "fork", "submit"):
        pool = Pool()
        one, other = session("llama", pool, [5, 6], [7]), session("llama", pool, [8])
        alone = session("llama", None, [5, 6], [7])
        want = alone.step([[4], [3]])
        waiting = other.submit([[4]])
        step = one.submit([[4], [3]])
        if act == "truncate":
            one.truncate([2, 1])
        elif act == "select":
            one.select([1])
        elif act == "fork":
            assert one.fork([1]).lengths == [2]
        else:
            one.submit([[3], [4]])
        same(one.collect(step), want)
        assert other.collect(waiting).shape[0] == 1
        assert other.lengths == [2]


def test_no_memory_for_a_join_leaves_sessions_apart_and_warns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool()
    first, second = (session("llama", pool, [5, 6, 7 + n]) for n in range(2))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(pooling.RaggedCache, "put", full)
    with pytest.warns(EnsembleWarning, match="1 rows of cache could not be copied"):
        together(first, second)
    assert first.home is not second.home
    assert (first.lengths, second.lengths) == ([4], [4])


def test_a_session_that_nobody_holds_is_freed_from_a_shared_cache() -> None:
    pool = Pool()
    first, second = (session("llama", pool, [5, 6, 7 + n]) for n in range(2))
    together(first, second)
    gone = weakref.ref(second)
    del second
    gc.collect()
    assert gone() is None
    assert first.home.live() == 1
    together(first)


def test_modes_of_inference_mix() -> None:
    pool = Pool()
    with torch.inference_mode():
        inside = session("llama", pool, [5, 6, 7])
    outside = session("llama", pool, [5, 6, 8])
    together(outside, inside)
    together(outside)
    with torch.inference_mode():
        together(outside, inside)
    alone = session("llama", None, [5, 6, 8])
    for _ in range(3):
        alone.step([[9]])
    same(outside.step([[4]]), alone.step([[4]]))


# ensembles


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward of any pool."""
    rows: list[int] = []
    right = pooling.run

    def run(engine: Any, cache: Any, ids: Any, *rest: Any) -> Any:
        rows.append(len(ids))
        return right(engine, cache, ids, *rest)

    monkeypatch.setattr(pooling, "run", run)
    return rows


def views(owner: Ensemble, *texts: str) -> list[int]:
    """Ids of an answer where every member reads a text of its own."""
    members = owner._ready().members
    prompts = [[one.prompt(text) for one, text in zip(members, texts, strict=True)]]
    request = RequestParams(max_tokens=12, speculation="off")
    with admit(owner, [""], request, prompts=prompts) as decoding:
        (answer,) = decoding.answers()[0]
    return [token.id for token in answer.tokens]


def test_two_views_of_one_model_cost_half_the_forwards_and_say_the_same(
    pico: Callable[..., Path], tmp_path: Path, counted: list[int]
) -> None:
    folder = pico("llama")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    told = []
    for second in (folder, copy):
        members = {"a": str(folder), "b": str(second)}
        with Ensemble(EnsembleParams(members=members, fusion="average")) as owner:
            owner.load()
            counted.clear()
            ids = views(owner, "Once upon a time there was a fox. He said", "The fox said")
            told.append((ids, list(counted)))
    (together_ids, shared), (apart_ids, apart) = told
    assert together_ids == apart_ids
    steps = shared.count(2)
    assert steps > 8
    assert shared == [1] * 2 + [2] * steps
    assert apart == [1] * 2 * (steps + 1)


def test_families_of_the_tests_are_what_they_say() -> None:
    assert set(FAMILIES) <= set(families.RAGGED)
