"""Requests that run together: each gets what it gets alone, in its order, within the limits."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble.decoding.admission import Limits, Line, Ticket, kv_bytes
from langchain_ensemble.decoding.choosing import choose_all, choose_apart
from langchain_ensemble.decoding.engine import Decoding, Engine
from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.question import Question
from langchain_ensemble.decoding.records import Answer, Piece
from langchain_ensemble.decoding.served import UNREAD
from langchain_ensemble.decoding.task import Chosen
from langchain_ensemble.decoding.turnstile import Turnstile
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import (
    ConfigError,
    DeadlineError,
    EnsembleWarning,
    MemberError,
    MemoryLimitError,
    OverloadedError,
)
from langchain_ensemble.params import EnsembleParams, RequestParams

NAMES = ("stories260K", "babyllama-361")
TEXTS = ("Once upon a time, there was a little", "Tom had a", "The sun was", "One day, a cat")

REQUESTS = (
    RequestParams(max_tokens=14),
    RequestParams(max_tokens=9, temperature=0.8, seed=5),
    RequestParams(max_tokens=12, temperature=0.8, seed=6, n=2),
    RequestParams(max_tokens=11, repetition_penalty=1.3),
    RequestParams(max_tokens=14, weights=(0.75, 0.25)),
    RequestParams(max_tokens=13, weights=(1.0, 0.0)),
    RequestParams(max_tokens=10, temperature=1.2, top_k=20, seed=1),
    RequestParams(max_tokens=16, stop=("a",)),
)
"""Limits, weights and ways to sample, as different as callers are."""


def members(shared: Path) -> list[str]:
    return [str(shared / "models" / name) for name in NAMES]


@pytest.fixture(scope="module")
def folders(shared: Path) -> list[str]:
    return members(shared)


@pytest.fixture(scope="module")
def owner(folders: list[str]) -> Iterator[Ensemble]:
    with Ensemble(EnsembleParams(members=folders, fusion="unite")) as made:
        yield made


@pytest.fixture
def limited(owner: Ensemble, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Give the loaded ensemble an engine with other limits."""

    def make(**limits: Any) -> Engine:
        engine = Engine(Limits(**limits))
        monkeypatch.setattr(owner, "_engine", engine)
        return engine

    return make


def plain(answer: Answer) -> tuple[Any, ...]:
    """What must not depend on who else runs."""
    return answer.text, [token.id for token in answer.tokens], answer.finish


def alone(owner: Ensemble, text: str, request: RequestParams) -> list[tuple[Any, ...]]:
    return [plain(answer) for answer in owner.generate([text], request)[0]]


def finish(decoding: Decoding) -> list[tuple[Any, ...]]:
    with decoding:
        return [plain(answer) for answer in decoding.answers()[0]]


def drain(decoding: Decoding, *others: Decoding) -> None:
    while not decoding.done:
        for one in (decoding, *others):
            one.step()


def begin(decoding: Decoding, *others: Decoding) -> list[Piece]:
    """Read the prompt, a piece a step, and decode once; the others are looked at meanwhile."""
    while not (pieces := decoding.step()):
        assert not decoding.done
        assert not any(other.step() for other in others)
    return pieces


def some(owner: Ensemble, tokens: int = 20, text: str = TEXTS[0], **more: Any) -> Decoding:
    return owner.open([text], RequestParams(max_tokens=tokens, **more))


# together as alone


@pytest.mark.parametrize("fusion", ["deepen", "unite"])
def test_threads_get_what_they_get_alone(folders: list[str], fusion: str) -> None:
    with Ensemble(EnsembleParams(members=folders, fusion=fusion)) as made:
        asks = [(TEXTS[n % 4], request) for n, request in enumerate(REQUESTS)]
        expected = [alone(made, *ask) for ask in asks]
        got: dict[int, Any] = {}
        gate = threading.Barrier(len(asks))

        def work(number: int) -> None:
            gate.wait()
            got[number] = alone(made, *asks[number])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(asks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[n] for n in range(len(asks))] == expected


def test_who_pumps_brings_all_forward(owner: Ensemble) -> None:
    """One thread: two requests are read to the end while a third is pumped."""
    asks = [(TEXTS[n], REQUESTS[n]) for n in range(3)]
    expected = [alone(owner, *ask) for ask in asks]
    first, *others = [owner.open([text], request) for text, request in asks]
    begun = {other: begin(other) for other in others}
    got = finish(first)
    for other, pieces in begun.items():
        steps = other.usage()[0].steps
        assert steps >= 8, "it went on while the first was pumped"
        told = [(t.id) for piece in pieces for t in piece.tokens if piece.row == 0]
        rest = finish(other)
        assert [*told, *rest[0][1]] == expected[1 + list(begun).index(other)][0][1]
    assert got == expected[0]


@pytest.mark.parametrize("fusion", ["average", "deepen", "gac", "unite"])
def test_one_question_for_all_answers_as_many_questions(folders: list[str], fusion: str) -> None:
    """Chosen together and one by one: equal keys, bytes, finishes; log-probabilities to 1e-5."""
    with Ensemble(EnsembleParams(members=folders, fusion=fusion)) as made:
        kinds = [
            RequestParams(max_tokens=30),
            RequestParams(max_tokens=30, temperature=0.9, seed=3),
        ]
        kinds += [RequestParams(max_tokens=30, weights=(1.0, 0.0))]
        for kind in kinds:
            sides = [[Asked(made, text, kind) for text in TEXTS[:3]] for _ in range(2)]
            for _ in range(12):
                together = [[one.ask() for one in side] for side in sides]
                apart = [chosen for q in together[0] for chosen in choose_all([q])]
                joint = choose_all(together[1])
                for side, questions, picks in zip(sides, together, (apart, joint), strict=True):
                    for one, question, chosen in zip(side, questions, picks, strict=True):
                        one.take(question, chosen)
                for a, b in zip(apart, joint, strict=True):
                    for x, y in zip(a, b, strict=True):
                        assert (x.key, x.finish) == (y.key, y.finish)
                        assert x.record is not None
                        assert y.record is not None
                        assert x.record.bytes == y.record.bytes
                        assert x.record.logprob == pytest.approx(y.record.logprob, abs=1e-5)
                        assert x.record.members == pytest.approx(y.record.members, abs=1e-5)


class Asked:
    """A request whose prompts are read, stepped by hand."""

    def __init__(self, owner: Ensemble, text: str, request: RequestParams) -> None:
        self.decoding = owner.open([text], request.model_copy(update={"speculation": "off"}))
        self.loop: Loop = self.decoding._loop
        with torch.inference_mode():
            while not self.loop.read:
                self.loop.read_on()

    def ask(self) -> Question:
        question = self.loop.ask()
        assert question is not None
        return question

    def take(self, question: Question, chosen: list[Chosen]) -> None:
        with torch.inference_mode():
            self.loop.answer(question, chosen)
            self.loop.collect()


def test_who_asks_for_logprobs_gets_them_whoever_else_runs(folders: list[str]) -> None:
    with Ensemble(EnsembleParams(members=folders, fusion="deepen")) as made:
        asked = [
            Asked(made, TEXTS[0], RequestParams(max_tokens=3)),
            Asked(made, TEXTS[1], RequestParams(max_tokens=3, logprobs=True)),
        ]
        with torch.inference_mode():
            chosen = choose_all([one.ask() for one in asked])
        told = [picks[0].record.logprob for picks in chosen if picks[0].record is not None]
        assert told[0] is None
        assert told[1] is not None


def test_one_transfer_for_all(owner: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    request = RequestParams(max_tokens=30)
    asked = [Asked(owner, text, request) for text in TEXTS]
    copies: list[int] = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda self: copies.append(self.numel()) or real(self)
    )
    with torch.inference_mode():
        choose_all([one.ask() for one in asked])
    assert len(copies) == 1


def test_a_round_is_one_forward_a_member(owner: Ensemble) -> None:
    """Fused answers, sampled ones, and one member alone, as in thinking and tool calls."""
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"weights": (1.0, 0.0)}, {"n": 2}]
    asked = [some(owner, 30, TEXTS[n], speculation="off", **kinds[n]) for n in range(4)]
    for one in asked:
        begin(one)
    drain_unread(asked)
    pools = [member._lease.value.pool for member in owner._ready().members]  # type: ignore[attr-defined]
    before = [pool.forwards for pool in pools]
    steps = [one.usage()[0].steps for one in asked]
    asked[0].step()
    assert [one.usage()[0].steps for one in asked] == [n + 1 for n in steps]
    assert [pool.forwards - n for pool, n in zip(pools, before, strict=True)] == [1, 1]
    for one in asked:
        one.close()


def drain_unread(asked: list[Decoding]) -> None:
    for one in asked:
        while one._served.unread:
            one.step()


def test_a_fusion_that_fails_for_one_fails_for_that_one_only(owner: Ensemble) -> None:
    asked = [Asked(owner, text, RequestParams(max_tokens=30)) for text in TEXTS[:3]]
    twins = [Asked(owner, text, RequestParams(max_tokens=30)) for text in TEXTS[:3]]
    built = owner._ready()
    real, bad = built.fuser, asked[1].ask().logits[0]

    class Picky:
        def __call__(self, distributions: Any, weights: Any) -> Any:
            rows = len(weights)
            if rows > 1 or torch.equal(distributions[0].logprobs.argmax(-1), bad.argmax(-1)):
                raise ValueError(f"{rows} rows with the one I do not like")
            return real(distributions, weights)

    with torch.inference_mode():
        questions = [one.ask() for one in asked]
        spoilt = [replace(q, task=replace(q.task, fuser=Picky())) for q in questions]
        picky = spoilt[0].task.fuser
        spoilt = [replace(q, task=replace(q.task, fuser=picky)) for q in spoilt]
        found = choose_apart(spoilt)
        expected = choose_all([one.ask() for one in twins])
    assert isinstance(found[1], ValueError)
    assert [found[0], found[2]] == [expected[0], expected[2]]


# errors are one's own


def test_an_error_ends_its_own_request(owner: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(owner, TEXTS[0], REQUESTS[0])
    good, bad = owner.open([TEXTS[0]], REQUESTS[0]), some(owner)

    def broken(*_: Any) -> Any:
        raise MemberError("mine")

    monkeypatch.setattr(bad._loop, "collect", broken)
    assert begin(bad), "what was decoded before is given"
    assert finish(good) == expected, "who pumps is not disturbed"
    with pytest.raises(MemberError, match="mine"):
        bad.step()
    assert bad.done
    assert bad.step() == []


def test_out_of_memory_reaches_whom_it_hits(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = owner.open([TEXTS[0]], REQUESTS[0]), some(owner)
    expected = alone(owner, TEXTS[0], REQUESTS[0])

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(bad._loop, "answer", full)
    good.step()
    with pytest.raises(MemoryLimitError, match=r"1 row.*no room.*stays usable"):
        drain(bad)
    good.close()
    assert alone(owner, TEXTS[0], REQUESTS[0]) == expected


def test_an_interrupt_ends_what_was_in_the_round(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = some(owner), some(owner)
    mine.step(), other.step()

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mine._loop, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drain(mine)
    with pytest.raises(Exception, match="was interrupted; ask again"):
        drain(other)
    mine.close()
    assert alone(owner, TEXTS[0], REQUESTS[0])


def test_warnings_come_in_the_callers_own_step(owner: Ensemble) -> None:
    names = ("stories260K", "babyllama-105")
    folder = Path(str(owner.params.members[0].model)).parent
    made = Ensemble(EnsembleParams(members=[str(folder / n) for n in names], fusion="average"))
    with made:
        strange = made.open(["A \N{SNOWMAN} was"], RequestParams(max_tokens=4))
        quiet = made.open([TEXTS[0]], RequestParams(max_tokens=4))
        quiet.step()
        with pytest.warns(EnsembleWarning, match="cannot spell all of the prompt"):
            strange.step()
        finish(quiet)
        strange.close()


# who does not read


def test_an_unread_stream_pauses_and_goes_on(owner: Ensemble) -> None:
    expected = alone(owner, TEXTS[0], RequestParams(max_tokens=UNREAD + 20))
    slow = some(owner, UNREAD + 20)
    told = begin(slow)
    finish(some(owner, UNREAD + 20, TEXTS[1]))
    assert not slow.done
    assert slow.usage()[0].steps <= UNREAD + 1
    while not slow.done:
        told += slow.step()
    assert [t.id for piece in told for t in piece.tokens] == expected[0][1]


def test_a_place_that_nobody_reads_is_given_on(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    """Room for one answer only: who does not read does not hold up the others for ever."""
    limited(max_concurrent=1)
    slow = some(owner, UNREAD + 20)
    begin(slow)
    assert len(finish(some(owner, 6, TEXTS[1]))[0][1]) == 6
    assert not slow.done
    assert slow.usage()[0].steps == UNREAD + 1
    assert len(finish(slow)[0][1]) == UNREAD + 20 - 1


# limits


def test_first_come_first_served_and_nobody_is_passed_by(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    limited(max_concurrent=3)
    running = some(owner, 9)
    begin(running)
    large = some(owner, 4, n=3)
    small = some(owner, 4, TEXTS[1])
    assert large.step() == []
    assert small.step() == [], "one answer would fit, but the large request came before"
    drain(running)
    begin(large, small)
    assert small.usage()[0].steps == 0
    assert len(finish(small)[0][1]) == 4
    assert large.usage()[0].steps == 4
    large.close()


def test_a_request_larger_than_the_limit_runs_alone(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    limited(max_concurrent=2)
    large, small = some(owner, 4, n=5), some(owner, 4)
    large.step()
    assert small.step() == []
    assert len(finish(large)) == 5
    assert len(finish(small)[0][1]) == 4


def test_finished_answers_give_their_places_on(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    limited(max_concurrent=2)
    pair = owner.open([TEXTS[0], TEXTS[1]], RequestParams(max_tokens=20, stop=("t",)))
    waits = some(owner, 3)
    pair.step()
    while sum(row.finish is None for row in pair.rows) == 2:
        assert waits.step() == []
        pair.step()
    assert not all(row.finish for row in pair.rows), "one answer is still running"
    begin(waits)
    pair.close()
    waits.close()


def test_a_full_queue_refuses_and_says_why(owner: Ensemble, limited: Callable[..., Engine]) -> None:
    limited(max_concurrent=1, max_queue=1)
    first, second, third = (some(owner, 5) for _ in range(3))
    first.step()
    assert second.step() == []
    with pytest.raises(
        OverloadedError, match=r"1 request\(s\) wait already, max_queue=1.*max_concurrent=1"
    ) as told:
        third.step()
    assert (told.value.waiting, told.value.limit) == (1, 1)
    assert third.done
    assert finish(first)
    assert finish(second)


def test_without_a_queue_what_fits_runs_at_once(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    limited(max_concurrent=2, max_queue=0)
    both = [some(owner, 5), some(owner, 5)]
    for one in both:
        one.step()
    with pytest.raises(OverloadedError, match="0 request"):
        some(owner, 5).step()
    for one in both:
        one.close()
    assert finish(some(owner, 5))


def test_a_deadline_runs_out_while_waiting(owner: Ensemble, limited: Callable[..., Engine]) -> None:
    limited(max_concurrent=1)
    first, second = some(owner, 200), some(owner, 5, timeout=0.05)
    first.step()
    with pytest.raises(DeadlineError, match=r"0.05 s passed while the request waited.*behind 1"):
        drain(second, first)
    assert not first.done
    first.close()


def test_an_unread_request_past_its_deadline_frees_its_caches(owner: Ensemble) -> None:
    slow = some(owner, 200, timeout=1.0)
    begin(slow)
    time.sleep(1.0)
    other = some(owner, UNREAD + 5)
    finish(other)
    assert slow._loop.done, "nobody has to ask for that"
    with pytest.raises(DeadlineError) as told:
        drain(slow)
    assert told.value.partial[0]


def test_kv_caches_are_estimated_and_bounded(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    probe = some(owner, 20)
    each = kv_bytes(probe._task)
    prompts = probe._task.prompts[0]
    assert each == sum(
        (len(own.ids) + 20) * voice.member.kv_bytes
        for own, voice in zip(prompts, probe._task.voices, strict=True)
    )
    engine = limited(kv_bytes=2 * each)
    with pytest.raises(MemoryLimitError, match=r"may need .* GB of KV caches.*kv_cache_gb="):
        some(owner, 20, n=3)
    one, two, three = (some(owner, 20) for _ in range(3))
    one.step(), two.step()
    assert three.step() == []
    assert len(engine._line) == 3
    two.close()
    begin(three)
    one.close(), three.close()
    whole = some(owner, 1)._task
    unbounded = RequestParams(max_tokens=None)
    assert kv_bytes(replace(whole, request=unbounded)) == sum(
        voice.member.context * voice.member.kv_bytes for voice in whole.voices
    )


@dataclass
class Kept:
    """A cache of prefixes of which only the size counts."""

    used_bytes: int

    def shrink(self, nbytes: int) -> int:
        freed = min(nbytes, self.used_bytes)
        self.used_bytes -= freed
        return freed


def test_what_is_kept_gives_way_to_what_runs(
    owner: Ensemble, limited: Callable[..., Engine]
) -> None:
    each = kv_bytes(some(owner, 20)._task)
    engine = limited(kv_bytes=2 * each)
    engine.keep(kept := Kept(2 * each))
    with some(owner, 20) as one:
        one.step()
        assert kept.used_bytes == each
        with some(owner, 20) as two:
            two.step()
            assert kept.used_bytes == 0


# ends


def test_a_request_that_is_dropped_ends(owner: Ensemble, limited: Callable[..., Engine]) -> None:
    engine = limited(max_concurrent=1)
    first, waits = some(owner, 30), some(owner, 4)
    first.step()
    assert waits.step() == []
    served = first._served
    del first
    gc.collect()
    assert served.closed
    assert finish(waits)
    assert len(engine._line) == 0


def test_closing_waits_for_nobody_and_frees_at_the_end_of_the_round(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed in the middle of a round by another thread, or by the garbage collector in it."""
    mine, other = some(owner), some(owner, 6)
    mine.step(), other.step()
    real = other._loop.collect
    seen: list[bool] = []

    def collect() -> None:
        mine.close()  # this thread is inside the round: waiting would be for ever
        seen.append(mine._served.closed)
        real()

    monkeypatch.setattr(other._loop, "collect", collect)
    expected = alone(owner, TEXTS[0], RequestParams(max_tokens=6))
    rest = finish(other)
    assert expected[0][0].endswith(rest[0][0])
    assert seen[0] is False
    assert mine.done
    assert mine._loop.done


def test_nothing_runs_before_the_first_step(owner: Ensemble) -> None:
    idle, other = some(owner), some(owner, 5)
    finish(other)
    assert idle.usage()[0].steps == 0
    assert not idle._loop.read
    idle.close()


# the parts


def test_the_turnstile_is_first_come_first_served() -> None:
    gate, order = Turnstile(), []
    gate.enter()

    def work(number: int) -> None:
        with gate:
            order.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        _until(lambda n=number: len(gate._waiters) == n)
    assert gate.try_enter() is False
    gate.leave()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
    assert gate.try_enter()
    gate.leave()


def test_who_is_served_does_not_enter() -> None:
    gate, served, came = Turnstile(), threading.Event(), []
    gate.enter()
    thread = threading.Thread(target=lambda: came.append(gate.enter(served.is_set)))
    thread.start()
    _until(lambda: len(gate._waiters) == 1)
    served.set()
    gate.leave()
    thread.join()
    assert came == [False]
    assert gate.enter(served.is_set) is False
    assert gate.enter()


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@dataclass
class Phase:
    """What a line looks at of a decoding."""

    left: int
    hungry: bool = True
    live: bool = True

    @property
    def rows(self) -> int:
        return self.left


def test_a_request_of_phases_keeps_its_place_between_them() -> None:
    line = Line(Limits(max_concurrent=1))
    turn, other = Ticket(stays=True, phases=[Phase(1)]), Ticket(phases=[Phase(1)])  # type: ignore[list-item]
    line.join(turn), line.join(other)
    assert line.next_round() == turn.phases
    turn.phases[0] = Phase(0, hungry=False, live=False)  # type: ignore[call-overload]
    line.remove_ended()
    assert line.next_round() == [], "its next phase comes soon"
    turn.phases[0] = Phase(1)  # type: ignore[call-overload]
    assert line.next_round() == turn.phases
    turn.phases[0] = Phase(0, hungry=False, live=False)  # type: ignore[call-overload]
    rounds = sum(line.next_round() == [] for _ in range(100))
    assert 10 < rounds < 60, "one that never goes on gives its place away"
    turn.over = True
    line.remove_ended()
    assert len(line) == 1


def test_wrong_prompts_are_refused_before_they_wait(owner: Ensemble) -> None:
    with pytest.raises(ConfigError, match=r"babyllama-361.*256"):
        owner.open(["word " * 90], RequestParams())
