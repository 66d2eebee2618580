"""An engine that says what a script tells it, a word a step: the adapter runs without torch.

It keeps the contract of ``Ensemble`` and ``Decoding`` (steps under one lock, stop strings, n,
timeouts, close from any thread) and counts what it does.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Tool
from langchain_ensemble.constraints.grammar import JsonSchema
from langchain_ensemble.decoding.records import (
    CallDelta,
    Finish,
    Piece,
    Score,
    TokenRecord,
    Usage,
)
from langchain_ensemble.errors import ContextError, DeadlineError
from langchain_ensemble.params import EnsembleParams, RequestParams


def default_script(prompt: str, answer: int) -> str:
    return f" you said {prompt!r}, and this is answer {answer} of some words."


@dataclass(frozen=True)
class Thought:
    member: str
    text: str


Said: TypeAlias = str | Thought | CallDelta
"""One step of a scripted turn."""


def instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """Some value that a JSON schema allows."""
    root = schema if root is None else root
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return instance(root["$defs"][name], root)
    for word in ("enum", "const"):
        if word in schema:
            return schema[word][0] if word == "enum" else schema[word]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0], root)
    simple = {"string": "some text", "integer": 3, "number": 1.5, "boolean": True, "null": None}
    kind = schema.get("type", "object")
    if kind in simple:
        return simple[kind]
    if kind == "array":
        return [instance(schema.get("items", {"type": "null"}), root)]
    return {name: instance(part, root) for name, part in schema.get("properties", {}).items()}


def spelled_call(index: int, name: str, arguments: Any, *, done: bool = True) -> list[Said]:
    """A call as fragments of four characters; the name comes with the first."""
    text = json.dumps(arguments, ensure_ascii=False)
    parts = [text[i : i + 4] for i in range(0, len(text), 4)]
    deltas = [CallDelta(index, arguments=part) for part in parts]
    deltas[0] = replace(deltas[0], name=name)
    deltas[-1] = replace(deltas[-1], done=done)
    return [*deltas]


def default_chat_script(
    conversation: Conversation, chat: ChatRequest, answer: int
) -> Sequence[Said]:
    """Obey what is asked for; else repeat what was said."""
    thinkers = {"off": [], "main": ["a"], "each": ["a", "b"]}[chat.thinking]
    thoughts = [Thought(name, f"{name} thinks{part}") for name in thinkers for part in (" a", " b")]
    if isinstance(chat.grammar, JsonSchema):
        text = json.dumps(instance(json.loads(chat.grammar.schema)), ensure_ascii=False)
        return [*thoughts, *(text[i : i + 5] for i in range(0, len(text), 5))]
    last = conversation.messages[-1]
    asked = last.role == "user" and "call" in last.text and chat.call == "auto"
    if chat.call == "required" or (asked and conversation.tools):
        tools = [t for t in conversation.tools if t.name in (chat.callable or [t.name])]
        return [*thoughts, *_calls(tools[:2] if chat.parallel and asked else tools[:1])]
    text = f"you said {last.text!r}, and this is answer {answer} of some words."
    return [*thoughts, *re.findall(r"\s*\S+", text)]


def _calls(tools: Sequence[Tool]) -> list[Said]:
    found: list[Said] = []
    for index, tool in enumerate(tools):
        found += spelled_call(index, tool.name, instance(tool.parameters))
    return found


class ScriptedEnsemble:
    def __init__(self, params: EnsembleParams, *, fusion: Any = None) -> None:
        self.params, self.fusion = params, fusion
        self.names, self.main_name = params.names, params.main_name
        self.script: Callable[[str, int], str] = default_script
        self.chat_script: Callable[[Conversation, ChatRequest, int], Sequence[Said]] = (
            default_chat_script
        )
        self.asked: list[tuple[Conversation, RequestParams, ChatRequest]] = []
        self.context = 500
        self.lock = threading.Lock()
        self.loaded = False
        self.loads = self.unloads = self.steps = 0
        self.opened: list[ScriptedDecoding | ScriptedTurn] = []
        self.step_seconds = 0.0
        self.load_seconds = 0.0
        self.fail_at: tuple[int, Exception] | None = None

    def load(self) -> None:
        if not self.loaded:
            time.sleep(self.load_seconds)
            self.loads += 1
            self.loaded = True

    def unload(self) -> None:
        if self.loaded:
            self.unloads += 1
            self.loaded = False

    def open(self, prompts: Sequence[str], request: RequestParams) -> ScriptedDecoding:
        self.load()
        decoding = ScriptedDecoding(self, list(prompts), request)
        self.opened.append(decoding)
        return decoding

    def open_chat(
        self, conversation: Conversation, request: RequestParams, chat: ChatRequest
    ) -> ScriptedTurn:
        self.load()
        self.asked.append((conversation, request, chat))
        if (length := self.count_chat(conversation, chat)) > self.context:
            text = f"prompt of {length} tokens, member 'a' holds {self.context}"
            raise ContextError(text, member="a", length=length, limit=self.context)
        decoding = ScriptedTurn(self, conversation, request, chat)
        self.opened.append(decoding)
        return decoding

    def count_chat(
        self,
        conversation: Conversation,
        request: ChatRequest = ChatRequest(),  # noqa: B008
        contexts: Mapping[str, str] | None = None,
    ) -> int:
        own = (contexts or {}).get(self.main_name, "")
        told = (conversation.messages, conversation.tools)
        return sum(len(repr(part).split()) for part in told) + len(own.split())

    def chat_limits(self) -> dict[str, int | None]:
        return dict.fromkeys(self.names, self.context)

    def score_chat(
        self,
        conversation: Conversation,
        answer: str,
        *,
        weights: Any,
        member: str | None,
        contexts: Mapping[str, str] | None,
        gate: str | Mapping[str, Any],
    ) -> Score:
        self.load()
        return Score(-1.0 - (member is not None), len(answer), 1.0, 1, False, 1)

    def fingerprint(self) -> str:
        return "fp_" + "_".join(self.names)

    def chat_templates(self) -> list[str]:
        return [str(m.name) for m in self.params.members if m.chat_template]

    def token_ids(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def score(
        self,
        text: str,
        prompt: str = "",
        *,
        weights: Any,
        member: str | None,
        contexts: Mapping[str, str] | None,
        gate: str | Mapping[str, Any],
    ) -> Score:
        self.load()
        return Score(-1.0 - (member is not None), len(text), 1.0, 1, False, 1)

    @property
    def running(self) -> int:
        return sum(not d.closed and not d.done for d in self.opened)


class Stepping:
    """Steps under the engine's lock, with its failures and the request's timeout."""

    done: bool

    def __init__(self, engine: ScriptedEnsemble, request: RequestParams) -> None:
        self.engine, self.request = engine, request
        self.started = time.monotonic()
        self.closed = False

    def pieces(self) -> list[Piece]:
        raise NotImplementedError

    def step(self) -> list[Piece]:
        with self.engine.lock:
            if self.done:
                return []
            self.engine.steps += 1
            time.sleep(self.engine.step_seconds)
            if self.engine.fail_at and self.engine.steps >= self.engine.fail_at[0]:
                self.closed = True
                raise self.engine.fail_at[1]
            limit = self.request.timeout
            if limit is not None and time.monotonic() - self.started > limit:
                self.closed = True
                raise DeadlineError(f"timeout of {limit} s passed", ["partial"])
            return self.pieces()

    def close(self) -> None:
        with self.engine.lock:
            self.closed = True


class ScriptedDecoding(Stepping):
    def __init__(
        self, engine: ScriptedEnsemble, prompts: list[str], request: RequestParams
    ) -> None:
        super().__init__(engine, request)
        self.prompts = prompts
        self.texts: list[str] = []
        self.words: list[list[str]] = []
        self.finishes: list[Finish] = []
        self.counts: list[int] = []
        for prompt in prompts:
            for answer in range(request.n):
                self._plan(engine.script(prompt, answer))

    def _plan(self, text: str) -> None:
        words = re.findall(r"\s*\S+", text)
        finish = Finish("stop")
        if len(words) > self.request.max_tokens:
            words, finish = words[: self.request.max_tokens], Finish("length")
        text = "".join(words)
        hits = [(text.find(s), s) for s in self.request.stop if s in text]
        if hits:
            at, stop = min(hits)
            words, finish = re.findall(r"\s*\S+|\s+$", text[:at]), Finish("stop", stop)
        self.words.append(words)
        self.finishes.append(finish)
        self.counts.append(len(words))

    @property
    def done(self) -> bool:
        return self.closed or not any(w is not None for w in self.words)

    def pieces(self) -> list[Piece]:
        return [self._piece(r) for r, w in enumerate(self.words) if w is not None]

    def _piece(self, row: int) -> Piece:
        words = self.words[row]
        text, rest = (words[0], words[1:]) if words else ("", [])
        self.words[row] = rest or None  # type: ignore[call-overload]
        members = dict.fromkeys(self.engine.names, -0.5)
        tokens = (TokenRecord(7, text.encode(), -0.25, members, True),) if text else ()
        return Piece(row, text, tokens, None if rest else self.finishes[row])

    def usage(self) -> list[Usage]:
        names = self.engine.names
        return [
            Usage(len(self.prompts[r // self.request.n].split()), c, c, c, dict.fromkeys(names, c))
            for r, c in enumerate(self.counts)
        ]


class ScriptedTurn(Stepping):
    """One turn of a conversation; every row says what the script has, a step at a time."""

    def __init__(
        self,
        engine: ScriptedEnsemble,
        conversation: Conversation,
        request: RequestParams,
        chat: ChatRequest,
    ) -> None:
        super().__init__(engine, request)
        self.prompt_tokens = engine.count_chat(conversation, chat)
        self.grammar = chat.grammar is not None
        scripts = [engine.chat_script(conversation, chat, n) for n in range(request.n)]
        self.rows = [self._cut(list(script)) for script in scripts]
        self.counts = [len(said) for said, _ in self.rows]
        self.thoughts = [sum(isinstance(s, Thought) for s in said) for said, _ in self.rows]
        self.at = 0

    def _cut(self, said: list[Said]) -> tuple[list[Said], Finish]:
        text = "".join(s for s in said if isinstance(s, str))
        hits = [(text.find(stop), stop) for stop in self.request.stop if stop in text]
        limit = self.request.max_tokens
        finish = Finish("stop")
        if hits and not self.grammar:
            at, stop = min(hits)
            other = [s for s in said if not isinstance(s, str)]
            said = [*other, *re.findall(r"\s*\S+|\s+$", text[:at])]
            finish = Finish("stop", stop)
        if limit is not None and len(said) > limit:
            said = said[:limit]
            cut = isinstance(said[-1], CallDelta) and not said[-1].done
            finish = Finish("length", unfinished=self.grammar or cut)
        elif said and isinstance(said[-1], CallDelta) and not said[-1].done:
            finish = Finish("stop", unfinished=True)
        return said, finish

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self.closed or self.at > max(self.counts)

    def pieces(self) -> list[Piece]:
        at, self.at = self.at, self.at + 1
        return [
            self._piece(row, at, said, finish)
            for row, (said, finish) in enumerate(self.rows)
            if at <= len(said)
        ]

    def _piece(self, row: int, at: int, said: list[Said], finish: Finish) -> Piece:
        if at == len(said):
            return Piece(row, "", finish=finish)
        item = said[at]
        if isinstance(item, CallDelta):
            return Piece(row, "", channel="call", calls=(item,))
        if isinstance(item, Thought):
            return Piece(row, item.text, channel="thought", member=item.member)
        names = dict.fromkeys(self.engine.names, -0.5)
        fused = len(self.engine.names) > 1
        return Piece(row, item, (TokenRecord(7, item.encode(), -0.25, names, fused),))

    def usage(self) -> list[Usage]:
        names = self.engine.names
        return [
            Usage(self.prompt_tokens, c, c, c, dict.fromkeys(names, c), thought_tokens=t)
            for c, t in zip(self.counts, self.thoughts, strict=True)
        ]
