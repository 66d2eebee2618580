"""What a plain fused step costs beyond the forwards of its members.

Two Llamas of 8 layers x 64 with random weights, vocabularies of 16k (byte-level) and 12k
(SentencePiece-like), ``unite``, loop only, no drafts, one thread. A round decodes some keys and
then runs the same sessions' forwards over the same ids, with the same roll-backs, and nothing else.
The overhead is the difference of a step's two times, the median of interleaved rounds. Operations
beside the forwards are counted, which does not depend on the machine. Members run eagerly, then
with ``forward="compiled"``, where what lies between the forwards is compiled too.

Run from the repository's root: ``python benchmarks/overhead.py``; ``--profile`` says where the
time goes. Results go to ``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import Row, clock_of, one_thread, save
from small_members import llama, text
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.session import SessionBase
from langchain_ensemble.params import EnsembleParams, Member, RequestParams

BAR_MS = 0.8
WARM, STEPS = 4, 24
Change = tuple[int, list[int], list[list[int]]]


class Ops(TorchDispatchMode):
    """Counts operations while it is on and not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def patched(**methods: Callable[..., Any]) -> Iterator[None]:
    """Put other methods into every session class for a while."""
    before = {name: getattr(SessionBase, name) for name in methods}
    for name, method in methods.items():
        setattr(SessionBase, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(SessionBase, name, method)


def prompt_of(owner: Ensemble, tokens: int) -> str:
    """A text of about so many tokens of main."""
    whole = text(12 * tokens)
    share = len(whole) / len(owner.token_ids(whole))
    return whole[: int(tokens * share)]


def recorded(owner: Ensemble, prompt: str, request: RequestParams) -> list[Change]:
    """What every session is asked in the timed steps: (voice, lengths it keeps, new ids)."""
    calls: list[Change] = []
    order: list[object] = []
    submit = SessionBase.submit

    def note(self: Any, ids: Any, keep: Any = 1) -> Any:
        if on:
            if self not in order:
                order.append(self)
            calls.append((self.engine.name, list(self.lengths), [list(row) for row in ids]))
        return submit(self, ids, keep)

    on = False
    with patched(submit=note), owner.open([prompt], request) as decoding:
        warm(decoding)
        on = True
        for _ in range(STEPS):
            decoding.step()
    return calls


def clock() -> float:
    """Seconds of processor time."""
    return clock_of("cpu")()


def warm(decoding: Decoding) -> None:
    """Read the prompt and decode some keys."""
    while len(decoding.rows[0].records) < WARM:
        decoding.step()


def fused_round(owner: Ensemble, prompt: str, request: RequestParams) -> float:
    """Seconds of a fused step."""
    with owner.open([prompt], request) as decoding:
        warm(decoding)
        started = clock()
        for _ in range(STEPS):
            decoding.step()
        return (clock() - started) / STEPS


@torch.inference_mode()
def bare_round(owner: Ensemble, prompt: str, calls: list[Change]) -> float:
    """The same of the forwards alone, over fresh sessions that have read as much."""
    built: Any = owner._ready()
    sessions = {}
    for member in built.members:
        sessions[member.name] = session = member.session()
        prompts = member.prompt(prompt)
        session.prefill([prompts])
        first = next(lengths for name, lengths, _ in calls if name == member.name)
        session.step([[5] * (max(first[0] - len(prompts.ids), 0) + 8)])  # rolled back below
    started = clock()
    for name, lengths, ids in calls:
        session = sessions[name]
        session.truncate(lengths)
        session.step(ids)
    took = clock() - started
    for session in sessions.values():
        session.close()
    return took / STEPS


def operations(owner: Ensemble, prompt: str, request: RequestParams) -> list[Counter[str]]:
    """Operations beside the forwards, step by step."""
    ops = Ops()
    submit, collect = SessionBase.submit, SessionBase.collect

    def quiet(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ops.paused = True
            try:
                return method(*args, **kwargs)
            finally:
                ops.paused = False

        return run

    counts = []
    with (
        patched(submit=quiet(submit), collect=quiet(collect)),
        owner.open([prompt], request) as decoding,
    ):
        warm(decoding)
        with ops:
            for _ in range(STEPS):
                ops.seen = Counter()
                decoding.step()
                counts.append(ops.seen)
    return counts


def profile(owner: Ensemble, prompt: str, request: RequestParams) -> None:
    """Print where a fused step's time goes."""
    import cProfile
    import pstats

    with owner.open([prompt], request) as decoding:
        warm(decoding)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(4 * STEPS):
            decoding.step()
        profiler.disable()
    stats = pstats.Stats(profiler)
    stats.sort_stats("cumulative").print_stats(r"langchain_ensemble", 45)


def measured(owner: Ensemble, request: RequestParams, rounds: int, forward: str) -> list[Row]:
    """Every figure; operations are counted where all are ours to count."""
    rows, counts = [], {}
    for tokens in (64, 2048, 8192) if forward == "eager" else (64, 2048):
        prompt = prompt_of(owner, tokens)
        if forward == "eager":
            steps = operations(owner, prompt, request)
            counts[tokens] = sorted({sum(step.values()) for step in steps})
        if tokens == 8192:
            continue
        calls = recorded(owner, prompt, request)
        pairs = [
            (fused_round(owner, prompt, request), bare_round(owner, prompt, calls))
            for _ in range(rounds)
        ]
        over = 1000 * statistics.median(fused - bare for fused, bare in pairs)
        more = {
            "fused_ms": 1000 * statistics.median(fused for fused, _ in pairs),
            "bare_ms": 1000 * statistics.median(bare for _, bare in pairs),
            "least_fused_ms": 1000 * min(fused for fused, _ in pairs),
            "least_bare_ms": 1000 * min(bare for _, bare in pairs),
        }
        on = f"{tokens} tokens" if forward == "eager" else f"{tokens} tokens, {forward}"
        rows.append(Row(MEASURE, on, over, BAR_MS, "ms", more=more))
    if forward != "eager":
        return rows
    same = len({str(found) for found in counts.values()}) == 1
    more = {str(tokens): found for tokens, found in counts.items()}
    rows.append(
        Row(
            "operations beside the forwards, 8k / 64 tokens",
            "every step",
            counts[8192][-1] / counts[64][-1] if same else 2.0,
            1.0,
            more=more,
        )
    )
    return rows


MEASURE = "overhead of a plain fused step over its bare forwards"


def main() -> None:
    """Measure, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fusion", default="unite")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    one_thread()
    members = {
        "main": str(llama(("byte-level", 16_000), hidden=64, layers=8, seed=1)),
        "other": str(llama(("metaspace", 12_000), hidden=64, layers=8, seed=2)),
    }
    request = RequestParams(max_tokens=1 + WARM + 5 * STEPS, speculation="off")
    rows: list[Row] = []
    for forward in ("eager", "compiled"):
        ours = {name: Member(folder, forward=forward) for name, folder in members.items()}
        params = EnsembleParams(members=ours, fusion=given.fusion, prefix_cache_gb=0)
        with Ensemble(params) as owner:
            if given.profile:
                profile(owner, prompt_of(owner, 64), request)
                continue
            rows += measured(owner, request, given.rounds, forward)
    if rows:
        save("overhead" if given.fusion == "unite" else f"overhead_{given.fusion}", rows)


if __name__ == "__main__":
    main()
