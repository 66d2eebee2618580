"""Turns over real decoding: phases in order, caches handed on, exact counts, nothing left open."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Message, Tool
from langchain_ensemble.constraints.grammar import JsonSchema
from langchain_ensemble.decoding.records import Piece
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import ConfigError, DeadlineError
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.requests import plain_task
from tests import chat_pico

ADD = Tool(
    "add",
    "Adds.",
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "yes": {"enum": [True]},
        },
        "required": ["a", "yes"],
        "additionalProperties": False,
    },
)
HELLO = Conversation((Message("user", "Hello, what is 2 and 3?"),))
WITH_TOOL = replace(HELLO, tools=(ADD,))


class Forced:
    """A member that says what it says, but for some steps of its own sessions."""

    def __init__(self, member: Any, script: dict[int, int]) -> None:
        self._member, self._script = member, script
        self.sessions: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def session(self) -> Any:
        made = _Session(self._member.session(), self._script, self)
        self.sessions.append(made)
        return made

    @property
    def open(self) -> int:
        return sum(bool(s.lengths) for s in self.sessions)


class _Session:
    chunk = None  # its script begins with its first forward: nothing may be taken over

    def __init__(self, session: Any, script: dict[int, int], owner: Forced, step: int = -1) -> None:
        self._session, self._script, self._owner, self._step = session, script, owner, step
        self.prefilled: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def _force(self, logits: torch.Tensor) -> torch.Tensor:
        self._step += 1
        token = self._script.get(self._step)
        if token is None:
            return logits
        forced = logits.clone()
        forced[..., token] = logits.max() + 30.0
        return forced

    def prefill(self, prompts: Any) -> torch.Tensor:
        self.prefilled = [len(p.ids) for p in prompts]
        return self._force(self._session.prefill(prompts))

    def collect(self, pending: Any) -> torch.Tensor:
        return self._force(self._session.collect(pending))

    def step(self, ids: Any, keep: int | None = 1) -> torch.Tensor:
        return self.collect(self._session.submit(ids, keep))

    def fork(self, rows: Any) -> Any:
        made = _Session(self._session.fork(rows), self._script, self._owner, self._step)
        self._owner.sessions.append(made)
        return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    def make(kind: str, template: str, markers: tuple[str, ...]) -> str:
        folder = tmp_path_factory.mktemp(f"chat-{kind}")
        return str(chat_pico.build(kind, folder, template, markers))

    return {
        "qwen": make("qwen2", chat_pico.QWEN, chat_pico.QWEN_MARKERS),
        "zephyr": make("llama", chat_pico.ZEPHYR, chat_pico.ZEPHYR_MARKERS),
    }


def ensemble(
    members: dict[str, str], script: dict[int, str] | None = None, fusion: str = "average"
) -> Ensemble:
    """An ensemble whose main says some control tokens at some steps of a session."""

    class _Scripted(Ensemble):
        forced: list[Forced]

        def _build(self, loaded: Any, on_progress: Any) -> Any:
            ids = [
                {at: m.tokenizer.convert_tokens_to_ids(t) for at, t in (script or {}).items()}
                if place == 0
                else {}
                for place, m in enumerate(loaded)
            ]
            self.forced = [Forced(m, own) for m, own in zip(loaded, ids, strict=True)]
            return super()._build(self.forced, on_progress)

    return _Scripted(EnsembleParams(members=members, fusion=fusion))


def run(turn: Any) -> list[Piece]:
    pieces: list[Piece] = []
    with turn:
        while not turn.done:
            pieces += turn.step()
    return pieces


def text(pieces: list[Piece], channel: str = "text", row: int = 0) -> str:
    return "".join(p.text for p in pieces if p.channel == channel and p.row == row)


def test_a_plain_answer_is_the_fused_answer_to_the_rendered_prompts(pair):
    engine = ensemble(pair)
    request = RequestParams(max_tokens=12)
    turn = engine.open_chat(HELLO, request, ChatRequest())
    pieces = run(turn)
    main, other = (replace_prompt(engine, name) for name in ("qwen", "zephyr"))
    task = plain_task(engine._ready(), engine.params, request)
    twin = engine._engine.admit(replace(task, prompts=[[main, other]]))
    ((answer,),) = twin.answers()
    assert text(pieces) == answer.text
    assert pieces[-1].finish == answer.finish
    assert turn.usage()[0] == answer.usage


def replace_prompt(engine: Ensemble, name: str) -> Any:
    built = engine._ready()
    return engine._readers.view(built, built.names.index(name)).prompt(HELLO, ChatRequest())


def calls_of(pieces: list[Piece]) -> list[tuple[str, str, bool]]:
    found: dict[int, list[Any]] = {}
    for piece in pieces:
        for delta in piece.calls:
            call = found.setdefault(delta.index, ["", "", False])
            call[0] += delta.name or ""
            call[1] += delta.arguments
            call[2] = call[2] or delta.done
    return [(str(n), str(a), bool(d)) for n, a, d in found.values()]


@pytest.mark.parametrize("at", [0, 3])
def test_main_opens_a_call_and_finishes_it_alone(pair, at):
    engine = ensemble(pair, {at: "<tool_call>"})
    turn = engine.open_chat(WITH_TOOL, RequestParams(max_tokens=80), ChatRequest())
    pieces = run(turn)
    ((name, arguments, done),) = calls_of(pieces)
    assert (name, done) == ("add", True)
    assert json.loads(arguments)["yes"] is True
    assert bool(text(pieces)) == (at > 0)
    assert "tool_call" not in text(pieces)
    usage = turn.usage()[0]
    assert usage.fused_steps <= at  # inside a character main is alone
    assert all(f.open == 0 for f in engine.forced)  # type: ignore[attr-defined]
    main = engine.forced[0]  # type: ignore[attr-defined]
    assert sum(bool(s.prefilled) for s in main.sessions) == 1, "the call reads nothing twice"


def test_a_cut_call_is_unfinished_and_never_done(pair):
    engine = ensemble(pair, {0: "<tool_call>"})
    pieces = run(engine.open_chat(WITH_TOOL, RequestParams(max_tokens=6), ChatRequest()))
    finish = pieces[-1].finish
    assert finish is not None
    assert finish.reason == "length"
    assert finish.unfinished
    assert not any(done for _, _, done in calls_of(pieces))


@pytest.mark.parametrize("by", ["main", "fused"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_required_call_is_made_whatever_the_members_think(pair, by, parallel):
    engine = ensemble(pair)
    chat = ChatRequest(call="required", tools_by=by, parallel=parallel)
    pieces = run(engine.open_chat(WITH_TOOL, RequestParams(max_tokens=300), chat))
    calls = calls_of(pieces)
    assert calls
    assert all(name == "add" for name, _, _ in calls)
    assert text(pieces) == ""
    assert len(calls) == 1 or parallel
    if pieces[-1].finish.reason == "stop":
        assert all(done for _, _, done in calls)


def test_only_the_tools_that_may_be_called_are(pair):
    other = replace(ADD, name="subtract")
    conversation = replace(HELLO, tools=(ADD, other))
    chat = ChatRequest(call="required", callable=("subtract",), parallel=False)
    engine = ensemble(pair)
    ((name, _, _),) = calls_of(
        run(engine.open_chat(conversation, RequestParams(max_tokens=200), chat))
    )
    assert name == "subtract"


def test_no_tool_is_called_where_none_may_be(pair):
    engine = ensemble(pair, {0: "<tool_call>"})
    pieces = run(engine.open_chat(WITH_TOOL, RequestParams(max_tokens=8), ChatRequest(call="none")))
    assert calls_of(pieces) == []


def test_a_grammar_holds_the_fused_text(pair):
    schema = json.dumps(ADD.parameters)
    chat = ChatRequest(grammar=JsonSchema(schema))
    pieces = run(ensemble(pair).open_chat(HELLO, RequestParams(max_tokens=80), chat))
    assert json.loads(text(pieces))["yes"] is True


@pytest.mark.parametrize("n", [1, 2])
def test_main_thinks_and_the_others_read_it(pair, n):
    engine = ensemble(pair, {4: "</think>"})
    chat = ChatRequest(thinking="main", thinking_tokens=20)
    request = RequestParams(max_tokens=6, n=n, temperature=0.7, seed=3)
    turn = engine.open_chat(HELLO, request, chat)
    pieces = run(turn)
    for row in range(n):
        thought, answer = text(pieces, "thought", row), text(pieces, "text", row)
        assert thought
        assert "think" not in thought + answer
    assert {p.member for p in pieces if p.channel == "thought"} == {"qwen"}
    usage = turn.usage()
    assert all(0 < u.thought_tokens < u.completion_tokens for u in usage)
    assert all(f.open == 0 for f in engine.forced)  # type: ignore[attr-defined]


@pytest.mark.parametrize("closes", [True, False])
def test_an_answer_after_a_thought_is_that_of_a_fresh_prompt(pair, closes):
    """Handing the cache on changes no token, whether the thought ended or was cut."""
    engine = ensemble(pair, {4: "</think>"} if closes else {})
    chat = ChatRequest(thinking="each", thinking_tokens=7)
    request = RequestParams(max_tokens=8)
    pieces = run(engine.open_chat(HELLO, request, chat))
    thought = text(pieces, "thought")
    plain = ensemble(pair)
    built = plain._ready()
    prompts = [
        plain._readers.view(built, 0).after_thought(HELLO, chat, thought),
        plain._readers.view(built, 1).prompt(HELLO, chat),
    ]
    twin = plain._engine.admit(replace(plain_task(built, plain.params, request), prompts=[prompts]))
    ((answer,),) = twin.answers()
    assert text(pieces) == answer.text


def test_thinking_that_nobody_can_is_refused(pair):
    engine = ensemble({"zephyr": pair["zephyr"]})
    with pytest.raises(ConfigError, match="zephyr"):
        engine.open_chat(HELLO, RequestParams(), ChatRequest(thinking="main"))


def test_a_closed_turn_frees_everything(pair):
    for steps in range(1, 9):
        engine = ensemble(pair, {3: "</think>"})
        chat = ChatRequest(thinking="each", thinking_tokens=5)
        turn = engine.open_chat(WITH_TOOL, RequestParams(max_tokens=9), chat)
        for _ in range(steps):
            turn.step()
        turn.close()
        assert turn.step() == []
        assert all(f.open == 0 for f in engine.forced)  # type: ignore[attr-defined]


def test_a_deadline_carries_the_text_so_far(pair):
    engine = ensemble(pair)
    engine.load()
    turn = engine.open_chat(HELLO, RequestParams(max_tokens=4000, timeout=0.2), ChatRequest())
    with pytest.raises(DeadlineError, match=r"timeout of 0\.2 s passed") as caught:
        run(turn)
    assert len(caught.value.partial) == 1


def test_each_member_says_how_long_it_took(pair):
    turn = ensemble(pair).open_chat(HELLO, RequestParams(max_tokens=4), ChatRequest())
    run(turn)
    seconds = turn.usage()[0].member_seconds
    assert set(seconds) == set(pair)
    assert all(value > 0 for value in seconds.values())
