"""An engine that says what a script tells it, a word a step: the adapter runs without torch.

It keeps the contract of ``Ensemble`` and ``Decoding`` (steps under one lock, stop strings, n,
timeouts, close from any thread) and counts what it does.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_ensemble.decoding.records import Finish, Piece, Score, TokenRecord, Usage
from langchain_ensemble.errors import DeadlineError
from langchain_ensemble.params import EnsembleParams, RequestParams


def default_script(prompt: str, answer: int) -> str:
    return f" you said {prompt!r}, and this is answer {answer} of some words."


class ScriptedEnsemble:
    def __init__(self, params: EnsembleParams, *, fusion: Any = None) -> None:
        self.params, self.fusion = params, fusion
        self.names, self.main_name = params.names, params.main_name
        self.script: Callable[[str, int], str] = default_script
        self.lock = threading.Lock()
        self.loaded = False
        self.loads = self.unloads = self.steps = 0
        self.opened: list[ScriptedDecoding] = []
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

    def chat_templates(self) -> list[str]:
        return [str(m.name) for m in self.params.members if m.chat_template]

    def token_ids(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def score(self, text: str, prompt: str = "", *, weights: Any, member: str | None) -> Score:
        self.load()
        return Score(-1.0 - (member is not None), len(text), 1.0, 1, False, 1)

    @property
    def running(self) -> int:
        return sum(not d.closed and not d.done for d in self.opened)


class ScriptedDecoding:
    def __init__(
        self, engine: ScriptedEnsemble, prompts: list[str], request: RequestParams
    ) -> None:
        self.engine, self.request, self.prompts = engine, request, prompts
        self.started = time.monotonic()
        self.closed = False
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

    def close(self) -> None:
        with self.engine.lock:
            self.closed = True
