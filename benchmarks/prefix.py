"""The first token of a call whose history is known: time, bytes, and ids that an agent reads.

Two Llamas of 256 x 4 with vocabularies of 32k and 24k. Every call sends 8k ids of history and 200
new ones; each goes on from the one before, as an agent's calls do, so that its history is moved out
of the cache without a copy. ``forked`` differs from what is kept near its end, and is copied.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from common import Row, interleaved, one_thread, save
from toys import ensemble_of, llama, opened, vocabulary

from langchain_ensemble.decoding.loop import Loop
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import RequestParams

HISTORY, NEW, ROUNDS, TURNS = 8192, 200, 5, 5
BAR = 1.3

Ids = list[tuple[int, ...]]


def main() -> None:
    """Measure and save."""
    one_thread()
    sizes = {"main": 32_000, "aux": 24_000}
    ensemble = ensemble_of(
        {n: (llama(v, 256, 4, seed=v), vocabulary(v, v)) for n, v in sizes.items()}, "unite"
    )
    calls = Calls(ensemble)
    times = interleaved(
        {
            "known": calls.known,
            "forked": calls.forked,
            "suffix": calls.suffix,
            "two steps": calls.two_steps,
        },
        rounds=ROUNDS,
    )
    unknown = interleaved({"afresh": calls.afresh}, rounds=1, warmup=0)
    kept = calls.prefixes
    on = f"256 x 4 pair, {HISTORY} ids of history, {NEW} new"
    told = {name: times.ms(name) for name in times.rounds}
    rows = [
        Row(
            "first token, history known / (suffix prefill + 2 steps)",
            on,
            times.ratio("known", "suffix", "two steps"),
            BAR,
            "x",
            more={"ms": told, "bytes_kept": kept.used_bytes},
        ),
        Row(
            "first token, history known but copied / (suffix prefill + 2 steps)",
            on,
            times.ratio("forked", "suffix", "two steps"),
            unit="x",
        ),
        Row("first token, history known", on, times.ms("known"), unit="ms"),
        Row("first token, nothing known", on, unknown.ms("afresh"), unit="ms"),
        Row("bytes kept an id, both members", on, calls.bytes_an_id(), unit="B"),
        *agent(ensemble),
    ]
    save("prefix", rows)


class Calls:
    """Calls that go on from each other, and their parts."""

    def __init__(self, ensemble: Ensemble) -> None:
        """Read the history once; every kind of call gets a copy."""
        self._ensemble = ensemble
        self._draw = random.Random(7)
        self._voices = ensemble._ready().voices
        self._sent = self._history = self._more(HISTORY)
        self.prefixes, self._copied, running = (PrefixCache(2**33) for _ in range(3))
        self._sessions = []
        with torch.inference_mode():
            for voice, ids in zip(self._voices, self._history, strict=True):
                session = voice.member.session()
                session.prefill([MemberPrompt(ids)])
                for cache in (self.prefixes, self._copied, running):
                    cache.put(voice.member, None, session.fork([0]), ids)
                self._sessions.append(session)
        task = replace(opened(ensemble, 1, max_tokens=None)._task, prefixes=running)
        prompts = [[MemberPrompt((*ids, 300)) for ids in self._history]]
        self._running = Loop(replace(task, prompts=prompts))  # nobody else runs its steps
        self._running.step()

    def known(self) -> None:
        """First token of a call that goes on from the last one."""
        self._sent = [a + b for a, b in zip(self._sent, self._more(NEW), strict=True)]
        self._call(self.prefixes, self._sent)

    def forked(self) -> None:
        """First token of a call beside the last one."""
        ids = [a + b for a, b in zip(self._history, self._more(NEW), strict=True)]
        self._call(self._copied, ids)

    def afresh(self) -> None:
        """First token where nothing is known."""
        self._call(None, [a + b for a, b in zip(self._history, self._more(NEW), strict=True)])

    @torch.inference_mode()
    def suffix(self) -> None:
        """What every call has to read, after the history."""
        for session, ids in zip(self._sessions, self._more(NEW), strict=True):
            session.step([ids])

    def two_steps(self) -> None:
        """Two steps of a request with such a history."""
        for _ in range(2):
            self._running.step()

    def bytes_an_id(self) -> float:
        """Bytes of the kept sessions by the ids of one of them."""
        return self.prefixes.used_bytes / len(self._sent[0])

    def _more(self, count: int) -> Ids:
        widths = [voice.member.logits_width for voice in self._voices]
        return [tuple(self._draw.randrange(300, w) for _ in range(count)) for w in widths]

    def _call(self, prefixes: PrefixCache | None, ids: Ids) -> None:
        """The first token of a call; whoever sent it wants no more."""
        task = opened(self._ensemble, 1, max_tokens=4)._task
        prompts = [[MemberPrompt(own) for own in ids]]
        task = replace(task, prompts=prompts, prefixes=prefixes)
        with self._ensemble._engine.admit(task) as decoding:
            while not any(piece.tokens for piece in decoding.step()):
                pass


def agent(ensemble: Ensemble) -> list[Row]:
    """Turns that resend everything said before: ids that each member reads."""
    text = "You are a helpful agent. These are your tools: search, read, write. " * 12
    rows = []
    for turn in range(TURNS):
        text += f" Turn {turn}: what comes next, and why does it come so late in the day?"
        with ensemble.open([text], RequestParams(max_tokens=32)) as decoding:
            ((answer,),) = decoding.answers()
            lengths = [len(prompt.ids) for prompt in decoding._task.prompts[0]]
        text += answer.text
        usage: Any = answer.usage
        names = list(usage.cached_tokens)
        read = {
            name: f"{length - usage.cached_tokens[name]} of {length}"
            for name, length in zip(names, lengths, strict=True)
        }
        share = sum(usage.cached_tokens.values()) / sum(lengths)
        rows.append(
            Row(
                f"agent, turn {turn + 1}: share of the prompt that is known",
                ", ".join(f"{n} reads {r}" for n, r in read.items()),
                share,
            )
        )
    return rows


if __name__ == "__main__":
    main()
