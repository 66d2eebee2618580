"""Prefixes reused between requests: history changes what is read, never what is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, SystemMessage

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.prefixes import USEFUL, PrefixCache, shared_length
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import MemoryLimitError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.replay import ReplaySession
from langchain_ensemble.members.session import HFSession, SessionBase
from langchain_ensemble.params import EnsembleParams, RequestParams
from tests.agent_stage import pair

TEXT = (
    "Once upon a time there was a little fox who lived in the forest with her mother. "
    "One day the fox found a red ball; she said: 'What is this?' and took it home. "
    "The king's daughter went out into the wood, and sat down by a cool spring."
)
SHORT = RequestParams(max_tokens=5)


@pytest.fixture(scope="module")
def members(pico: Callable[..., Path]) -> dict[str, str]:
    return {kind: str(pico(kind)) for kind in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def shared_owner(members: dict[str, str]) -> Iterator[Ensemble]:
    with Ensemble(EnsembleParams(members=members, fusion="average")) as made:
        yield made


@pytest.fixture
def owner(shared_owner: Ensemble) -> Ensemble:
    shared_owner._prefixes.clear()
    return shared_owner


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids that were submitted, one entry a block; rows added up."""
    blocks: list[int] = []
    submit = SessionBase.submit

    def counted(self: SessionBase, ids: Any, keep: int | None = 1) -> Any:
        blocks.append(sum(map(len, ids)))
        return submit(self, ids, keep)

    monkeypatch.setattr(SessionBase, "submit", counted)
    return blocks


def afresh(owner: Ensemble, texts: list[str], request: RequestParams) -> Decoding:
    """The naive twin: the same request, with nothing reused and nothing kept."""
    with owner.open(texts, request) as decoding:
        task = decoding._task
    return owner._engine.admit(replace(task, prefixes=None))


def said(decoding: Decoding) -> list[list[Any]]:
    with decoding:
        return [
            [(a.text, a.finish, [(t.id, t.bytes) for t in a.tokens], a.usage) for a in answers]
            for answers in decoding.answers()
        ]


def cached(owner: Ensemble, text: str, request: RequestParams = SHORT) -> dict[str, int]:
    with owner.open([text], request) as decoding:
        ((answer,),) = decoding.answers()
        return answer.usage.cached_tokens


PIECES = ["Once upon a time", " there was a fox.", " naïve café", " 日本語", "ñ", " the", "a"]


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[list[str], RequestParams]]:
    """Calls whose prompts share beginnings, are resent, cut (anywhere), or go on."""
    made: list[tuple[list[str], RequestParams]] = []
    known = ["".join(draw(st.lists(st.sampled_from(PIECES), min_size=4, max_size=9)))]
    for _ in range(draw(st.integers(2, 4))):
        texts = []
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            old = draw(st.sampled_from(known))
            kept = old[: draw(st.integers(len(old) // 2, len(old)))]
            texts.append(kept + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=3))))
        known += texts
        request = RequestParams(
            max_tokens=draw(st.integers(1, 6)),
            temperature=draw(st.sampled_from([0.0, 1.0])),
            seed=draw(st.integers(0, 9)),
            n=draw(st.sampled_from([1, 1, 2])),
            cache_salt=draw(st.sampled_from([None, None, "mine"])),
        )
        made.append((texts, request))
    return made


@settings(max_examples=12)
@given(calls())
def test_reused_as_afresh(shared_owner: Ensemble, sent: list[Any]) -> None:
    owner = shared_owner
    owner._prefixes.clear()
    for texts, request in sent:
        assert said(owner.open(texts, request)) == said(afresh(owner, texts, request))


def test_an_answer_is_gone_on_with(owner: Ensemble, ran: list[int]) -> None:
    """A turn resends prompt and answer: only what is new is run, as far as its ids are the same."""
    with owner.open([TEXT], RequestParams(max_tokens=6)) as decoding:
        ((answer,),) = decoding.answers()
    text = TEXT + answer.text + " Then came a king."
    request = RequestParams(max_tokens=1)
    ran.clear()
    want = said(afresh(owner, [text], request))
    fresh = sum(ran)
    ran.clear()
    with owner.open([text], request) as decoding:
        task = decoding._task
        ((again,),) = decoding.answers()
    usage = again.usage
    assert [[(again.text, again.finish, [(t.id, t.bytes) for t in again.tokens], usage)]] == want
    assert set(usage.cached_tokens) == {"llama", "gpt2"}
    assert all(count >= len(TEXT) // 8 for count in usage.cached_tokens.values())
    assert sum(ran) == fresh - sum(usage.cached_tokens.values())
    lengths = [len(p.ids) for p in task.prompts[0]]
    assert usage.prompt_tokens == lengths[0]
    assert usage.member_tokens == dict(zip(("llama", "gpt2"), lengths, strict=True))


def test_ids_that_are_spelled_otherwise_are_read_again(owner: Ensemble) -> None:
    """What is reused are ids, not text: from the first that differs on all is read."""
    voice = owner._ready().voices[0]
    whole = tuple(owner._ready().members[0].prompt(TEXT).ids)
    bytewise = [voice.vocabulary.token_bytes.index(bytes([b])) for b in b"forest"]
    at = next(n for n, i in enumerate(whole) if voice.vocabulary.token_bytes[i] == b" forest")
    space = voice.vocabulary.token_bytes.index(b" ")
    spelled = (*whole[:at], space, *bytewise, *whole[at + 1 :])
    with torch.inference_mode():
        session = voice.member.session()
        session.prefill([MemberPrompt(spelled)])
        owner._prefixes.put(voice.member, None, session, spelled)
    task = owner.open([TEXT], SHORT)._task
    loop = Loop(task)
    with torch.inference_mode():
        while not loop.read:
            loop.read_on()
    assert loop._caches.cached == [at if at >= USEFUL else 0, 0]
    loop.close()


def test_salts_do_not_mix(owner: Ensemble) -> None:
    mine, other = (RequestParams(max_tokens=5, cache_salt=salt) for salt in ("mine", "other"))
    assert set(cached(owner, TEXT, mine).values()) == {0}
    assert set(cached(owner, TEXT, other).values()) == {0}
    assert set(cached(owner, TEXT).values()) == {0}
    assert min(cached(owner, TEXT, mine).values()) > USEFUL


def test_off(members: dict[str, str]) -> None:
    with Ensemble(EnsembleParams(members=members, fusion="average", prefix_cache_gb=0)) as off:
        for _ in range(2):
            assert set(cached(off, TEXT).values()) == {0}
        assert len(off._prefixes) == off._prefixes.used_bytes == 0


class TestCache:
    """The cache by itself, over real sessions of one member."""

    @pytest.fixture
    def member(self, shared_owner: Ensemble) -> Any:
        return shared_owner._ready().members[0]

    def read(self, member: Any, ids: tuple[int, ...]) -> HFSession:
        session: HFSession = member.session()
        with torch.inference_mode():
            session.prefill([MemberPrompt(ids)])
        return session

    def size(self, member: Any, ids: tuple[int, ...]) -> int:
        return self.read(member, ids).nbytes

    IDS = tuple(range(300, 340))

    def test_bound_and_order(self, member: Any) -> None:
        beginnings = [(start, *self.IDS) for start in range(20, 25)]
        one = self.size(member, beginnings[0])
        cache = PrefixCache(3 * one)
        for ids in beginnings[:3]:
            cache.put(member, None, self.read(member, ids), ids)
        assert (len(cache), cache.used_bytes) == (3, 3 * one)
        copy = cache.take(member, None, (*beginnings[0][:20], 7))  # used: now 1 is the oldest
        assert copy is not None
        cache.put(member, None, self.read(member, beginnings[3]), beginnings[3])
        assert (len(cache), cache.used_bytes) == (3, 3 * one)
        assert cache.take(member, None, beginnings[1]) is None
        assert cache.shrink(one + 1) == 2 * one  # 2 and 0 go
        assert cache.take(member, None, beginnings[0]) is None
        assert cache.take(member, None, beginnings[3]) is not None
        assert cache.used_bytes == len(cache) == 0
        assert cache.shrink(10) == 0

    def test_what_is_larger_than_all_is_not_kept(self, member: Any) -> None:
        session = self.read(member, self.IDS)
        cache = PrefixCache(session.nbytes - 1)
        cache.put(member, None, session, self.IDS)
        assert (len(cache), cache.used_bytes, session.lengths) == (0, 0, [])

    def test_moved_or_copied(self, member: Any) -> None:
        cache = PrefixCache(2**30)
        session = self.read(member, self.IDS)
        cache.put(member, None, session, self.IDS)
        far = cache.take(member, None, (*self.IDS[:20], 7))
        assert far is not None
        assert far is not session
        assert (far.lengths, session.lengths, len(cache)) == ([20], [40], 1)
        assert far.nbytes < session.nbytes or session.nbytes == self.size(member, self.IDS[:20])
        near = cache.take(member, None, (*self.IDS[:30], 7))
        assert near is session
        assert (near.lengths, len(cache), cache.used_bytes) == ([30], 0, 0)

    def test_the_last_id_is_always_run(self, member: Any) -> None:
        cache = PrefixCache(2**30)
        for ids in (self.IDS, self.IDS[:-3]):
            cache.put(member, None, self.read(member, self.IDS), self.IDS)
            taken = cache.take(member, None, ids)
            assert taken is not None
            assert taken.lengths == [len(ids) - 1]

    def test_short_ones_are_not_worth_it(self, member: Any) -> None:
        cache = PrefixCache(2**30)
        cache.put(member, None, self.read(member, self.IDS), self.IDS)
        assert cache.take(member, None, self.IDS[:USEFUL]) is None
        assert cache.take(member, None, self.IDS[: USEFUL + 1]) is not None
        cache.clear()
        cache.put(member, None, self.read(member, self.IDS[:9]), self.IDS[:9])
        assert len(cache) == 0

    def test_one_of_several_rows_goes_in(self, member: Any) -> None:
        session: HFSession = member.session()
        rows = [(9, *self.IDS), (8, *self.IDS[:20])]
        with torch.inference_mode():
            session.prefill([MemberPrompt(ids) for ids in rows])
        cache = PrefixCache(2**30)
        cache.put(member, None, session, rows[1], row=1)
        taken = cache.take(member, None, (*rows[1], 7))
        assert taken is not None
        assert taken.lengths == [len(rows[1])]
        with torch.inference_mode():
            got = taken.step([[7]])[0, -1]
            want = member.session().prefill([MemberPrompt((*rows[1], 7))])[0]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert session.lengths == []

    def test_what_is_known_is_not_kept_twice(self, member: Any) -> None:
        cache = PrefixCache(2**30)
        for length in (20, 40, 30):  # longer, then a part of what is there
            cache.put(member, None, self.read(member, self.IDS), self.IDS[:length])
        assert len(cache) == 1
        taken = cache.take(member, None, (*self.IDS, 7))
        assert taken is not None
        assert taken.lengths == [40]

    def test_little_room_is_left(self, member: Any) -> None:
        ids = self.IDS * 6
        session = self.read(member, ids)
        cache = PrefixCache(2**30)
        cache.put(member, None, session, ids[:40])
        assert cache.used_bytes == self.size(member, ids[:40])
        assert session.lengths == []

    @settings(max_examples=40)
    @given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8), st.data())
    def test_the_longest_beginning_is_found(
        self, shared_owner: Ensemble, kept: list[list[int]], data: st.DataObject
    ) -> None:
        """Against looking at every entry."""
        member = shared_owner._ready().members[0]
        cache = PrefixCache(2**30)
        lead = tuple(range(10, 10 + USEFUL))
        for ids in kept:
            cache.put(member, None, self.read(member, (*lead, *ids)), (*lead, *ids))
        held = [entry.ids for entry in cache._recent]
        wanted = (*lead, *data.draw(st.lists(st.integers(0, 2), max_size=12)), 3)
        entry, shared = cache._nearest((member, None), wanted)
        assert shared == max((shared_length(ids, wanted[:-1]) for ids in held), default=0)
        if entry is not None:
            assert entry.ids[:shared] == wanted[:shared]


@given(st.lists(st.integers(0, 1), max_size=200), st.integers(0, 200), st.integers(0, 200))
def test_shared_length(ids: list[int], cut: int, other: int) -> None:
    a, b = tuple(ids), (*ids[:cut], *([2] * (other % 3)))
    naive = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    assert shared_length(a, b) == (min(len(a), len(b)) if naive is None else naive)


class TestRunning:
    """Requests that run side by side."""

    def test_a_running_request_is_copied(self, owner: Ensemble, ran: list[int]) -> None:
        want = said(afresh(owner, [TEXT + " And"], SHORT))
        with owner.open([TEXT], RequestParams(max_tokens=40)) as first:
            while not any(piece.text for piece in first.step()):
                pass
            second = owner.open([TEXT + " And"], SHORT)
            assert said(second) == want
            counts = second.usage()[0].cached_tokens
            assert min(counts.values()) > USEFUL
            ((answer,),) = first.answers()
        ((alone,),) = afresh(owner, [TEXT], RequestParams(max_tokens=40)).answers()
        assert answer.tokens[-1].id == alone.tokens[-1].id

    def test_nobody_reads_what_another_is_reading(
        self, owner: Ensemble, monkeypatch: pytest.MonkeyPatch, ran: list[int]
    ) -> None:
        monkeypatch.setattr(HFSession, "chunk", 8)
        first, second = (Loop(owner.open([TEXT + end], SHORT)._task) for end in (" a", " b"))
        lengths = [len(p.ids) for p in second._task.prompts[0]]
        ran.clear()
        with torch.inference_mode():
            while not (first.read and second.read):
                first.read_on()
                second.read_on()
        saved = [
            max(pair) for pair in zip(*(one._caches.cached for one in (first, second)), strict=True)
        ]
        assert all(n > length - 2 * USEFUL for n, length in zip(saved, lengths, strict=True))
        assert sum(ran) == 2 * sum(lengths) - sum(saved)
        first.close()
        second.close()

    def test_who_waits_for_a_request_that_stands_still_goes_on_alone(
        self, owner: Ensemble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(HFSession, "chunk", 8)
        want = said(afresh(owner, [TEXT], SHORT))
        first = Loop(owner.open([TEXT + " a"], SHORT)._task)
        with torch.inference_mode():
            first.read_on()
        assert said(owner.open([TEXT], SHORT)) == want
        first.close()
        assert said(owner.open([TEXT + " a"], SHORT)) == said(afresh(owner, [TEXT + " a"], SHORT))

    def test_a_request_that_was_given_up_leaves_its_prompt(self, owner: Ensemble) -> None:
        with owner.open([TEXT], RequestParams(max_tokens=40)) as decoding:
            while not any(piece.text for piece in decoding.step()):
                pass
            lengths = [len(p.ids) for p in decoding._task.prompts[0]]
        assert sorted(len(e.ids) for e in owner._prefixes._recent) == sorted(lengths)
        assert list(cached(owner, TEXT).values()) == [n - 1 for n in lengths]

    def test_half_a_prompt_is_kept_too(
        self, owner: Ensemble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(HFSession, "chunk", 20)
        loop = Loop(owner.open([TEXT], SHORT)._task)
        with torch.inference_mode():
            loop.read_on()
            loop.read_on()
        assert not loop.read
        known = loop._caches._reading.readers[0].session.lengths[0]  # type: ignore[union-attr]
        loop.close()
        assert [len(e.ids) for e in owner._prefixes._recent] == [known]
        assert said(owner.open([TEXT], SHORT)) == said(afresh(owner, [TEXT], SHORT))


def test_unload_frees_everything(members: dict[str, str]) -> None:
    made = Ensemble(EnsembleParams(members=members, fusion="average"))
    assert set(cached(made, TEXT).values()) == {0}
    kept = made._prefixes
    assert kept.used_bytes > 0
    late = made.open([TEXT], RequestParams(max_tokens=40))
    while not any(piece.text for piece in late.step()):
        pass
    made.unload()
    assert (kept.used_bytes, len(kept), len(made._prefixes)) == (0, 0, 0)
    late.close()  # what still ran is not kept either
    assert (kept.used_bytes, len(made._prefixes)) == (0, 0)
    assert set(cached(made, TEXT).values()) == {0}
    made.unload()


def test_out_of_memory_empties_the_cache(owner: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(owner, TEXT)
    assert owner._prefixes.used_bytes > 0

    def full(self: SessionBase, *args: Any) -> None:
        raise MemoryLimitError("full")

    with monkeypatch.context() as patch:
        patch.setattr(SessionBase, "submit", full)
        with pytest.raises(MemoryLimitError), owner.open([TEXT + " a"], SHORT) as decoding:
            decoding.answers()
    assert (owner._prefixes.used_bytes, len(owner._prefixes)) == (0, 0)
    assert set(cached(owner, TEXT).values()) == {0}
    owner.score(" a", TEXT)
    assert owner._prefixes.used_bytes > 0
    with monkeypatch.context() as patch:
        patch.setattr(SessionBase, "submit", full)
        with pytest.raises(MemoryLimitError):
            owner.score(" b", TEXT)
    assert (owner._prefixes.used_bytes, len(owner._prefixes)) == (0, 0)


def test_no_room_for_a_copy_costs_the_entry_not_the_answer(
    owner: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = said(afresh(owner, [TEXT, "Tom went home and saw nothing at all."], SHORT))

    def full(self: HFSession, *args: Any) -> None:
        raise MemoryLimitError("full")

    monkeypatch.setattr(HFSession, "fork", full)
    assert said(owner.open([TEXT, "Tom went home and saw nothing at all."], SHORT)) == want


def test_states_that_cannot_be_rolled_back_are_not_kept(
    members: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = HFMember.session

    def replayed(self: HFMember) -> Any:
        made = session(self)
        if self.name == "gpt2":
            return made
        engine: Engine = made.engine  # type: ignore[attr-defined]
        return ReplaySession(engine, single=False)

    monkeypatch.setattr(HFMember, "session", replayed)
    with Ensemble(EnsembleParams(members=members, fusion="average")) as made:
        for end in ("", " And", ""):
            text = [TEXT + end]
            assert said(made.open(text, SHORT)) == said(afresh(made, text, SHORT))
        got = cached(made, TEXT)
        assert got["llama"] == 0
        assert got["gpt2"] > USEFUL


@pytest.fixture(scope="module")
def chats(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ChatEnsemble, ChatEnsemble]]:
    """The same ensemble with and without a prefix cache."""
    members = dict(pair(tmp_path_factory.mktemp("chat"), positions=2048))
    given: Any = {"members": members, "fusion": "average", "max_tokens": 6}
    with ChatEnsemble(**given) as chat, ChatEnsemble(**given, prefix_cache_gb=0) as plain:
        yield chat, plain


class TestChat:
    """An agent resends its conversation at every turn."""

    @pytest.mark.parametrize("tools", [False, True])
    def test_an_agents_turns_read_what_is_new(
        self, chats: tuple[ChatEnsemble, ChatEnsemble], tools: bool
    ) -> None:
        def search(query: str) -> str:
            """Search."""
            return query

        salt = f"tools={tools}"
        chat, plain = (c.bind_tools([search]) if tools else c for c in chats)
        turns: list[Any] = [SystemMessage("You answer. " + TEXT)]
        unread = []
        for number in range(5):
            turns.append(HumanMessage(f"{number}: who went into the wood, and what was there?"))
            got: Any = chat.invoke(turns, cache_salt=salt)
            want: Any = plain.invoke(turns)
            assert (got.content, got.tool_calls) == (want.content, want.tool_calls)
            read = got.usage_metadata.pop("input_token_details", {}).get("cache_read", 0)
            assert got.usage_metadata == want.usage_metadata
            for message in (got, want):
                message.response_metadata["ensemble"].pop("member_ms")
                message.response_metadata.pop("system_fingerprint")
            assert got.response_metadata == want.response_metadata
            unread.append(got.usage_metadata["input_tokens"] - read)
            turns.append(got)
        assert max(unread[1:]) < unread[0] / 2

    def test_streams_tell_it_once(self, chats: tuple[ChatEnsemble, ChatEnsemble]) -> None:
        chat, _ = chats
        asked = [HumanMessage(TEXT)]
        chat.invoke(asked)
        told = [c.usage_metadata for c in chat.stream(asked) if c.usage_metadata]
        (usage,) = told
        assert usage["input_token_details"] == {"cache_read": usage["input_tokens"] - 1}
