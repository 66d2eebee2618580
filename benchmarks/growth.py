"""How a decode step grows: with context, batch, members, vocabulary; and each fusion's cost alone.

Random weights, one thread, greedy, no drafts. A figure is the median milliseconds of a step that
decodes one key in every row. Sizes are small, so that the whole file takes a few minutes.

Run from the repository's root: ``python benchmarks/growth.py``. Results go to
``benchmarks/results/growth.json``.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from common import SHARED, Row, clock_of, interleaved, one_thread, save
from toys import ensemble_of, llama, opened, real_vocabulary, vocabulary

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import member_distribution

FUSIONS = ("average", "gac", "unite")  # deepen_search.py looks at the fourth
REAL = (("llama-2", 32_000), ("gpt2", 50_257), ("qwen2.5", 151_665))
Line = list[list[float]]


def step_ms(owner: Ensemble, context: int, rows: int, steps: int) -> float:
    """Median milliseconds of a step."""
    clock, taken = clock_of("cpu"), []
    request = {"max_tokens": steps + 8, "speculation": "off"}
    with opened(owner, context, rows, **request) as decoding:
        while len(decoding.rows[0].records) < 2:
            if decoding.done:
                raise SystemExit(f"an answer of random models ended at once: {owner.names}")
            decoding.step()
        for _ in range(steps):
            started = clock()
            decoding.step()
            taken.append((clock() - started) * 1e3)
            if decoding.done:
                break
    return statistics.median(taken)


def batch_ratio(owners: list[Ensemble], rounds: int) -> tuple[float, float]:
    """Tokens per second of 8 rows over those of one: of steps, and of the forwards alone.

    Args:
        owners: Two equal ensembles: one decodes a row, the other eight, in turns.
        rounds: Of a few steps each; the medians of their times count.
    """
    work: dict[str, Any] = {}
    with ExitStack() as running:
        for owner, rows in zip(owners, (1, 8), strict=True):
            request = {"max_tokens": 4 * rounds + 16, "speculation": "off"}
            decoding = running.enter_context(opened(owner, 64, rows, **request))
            while len(decoding.rows[0].records) < 2:
                decoding.step()
            work[f"steps {rows}"] = decoding.step
            built: Any = owner._ready()
            sessions = [member.session() for member in built.members]
            for place, session in enumerate(sessions):
                session.prefill([row[place] for row in decoding._task.prompts])
                running.callback(session.close)
            work[f"forwards {rows}"] = partial(forward_all, sessions, rows)
        times = interleaved(work, rounds, inner=3)
    return 8 / times.ratio("steps 8", "steps 1"), 8 / times.ratio("forwards 8", "forwards 1")


@torch.inference_mode()
def forward_all(sessions: list[Any], rows: int) -> None:
    """One id in every row of every member."""
    for session in sessions:
        session.step([[300]] * rows)


def pair(
    size: int, hidden: int, layers: int, fusion: str, members: int = 2, *, equal: bool = False
) -> Ensemble:
    """Members of the same shape; their vocabularies are equal, or share three quarters."""
    made = {
        f"m{i}": (llama(size, hidden, layers, seed=i), vocabulary(size, 0 if equal else i))
        for i in range(members)
    }
    for model, _ in made.values():
        with torch.no_grad():
            model.lm_head.weight[:257] = 0.0  # no END, no halves of characters
    return ensemble_of(made, fusion, prefix_cache_gb=0)


def fusion_alone(owner: Ensemble, rounds: int) -> float:
    """Median milliseconds of one fusion of one row, distributions given."""
    built: Any = owner._ready()
    generator = torch.Generator().manual_seed(0)
    said = [
        member_distribution(
            4 * torch.randn(1, v.member.logits_width, generator=generator), v.keys, v.allowed[0]
        )
        for v in built.voices
    ]
    weights = torch.full((1, len(said)), 1 / len(said))
    with torch.inference_mode():
        times = interleaved({"fuse": lambda: built.fuser(said, weights)}, rounds, inner=5)
    return times.ms("fuse")


def measured(steps: int) -> tuple[list[Row], dict[str, Any]]:
    """Every figure, and the lines of the plots."""
    rows: list[Row] = []
    lines: dict[str, dict[str, Line]] = {name: {} for name in ("context", "batch")}
    lines |= {name: {} for name in ("members", "vocabulary")}

    def note(plot: str, label: str, size: float, took: float, on: str) -> None:
        lines[plot].setdefault(label, []).append([size, took])
        rows.append(Row(f"a step by {plot}", on, took, unit="ms"))
        print(f"  {plot}: {on}: {took:.2f} ms", flush=True)

    owner = pair(12_000, 64, 8, "unite")
    for context in (64, 512, 2048, 8192):
        note("context", "unite", context, step_ms(owner, context, 1, steps), f"{context} tokens")
    owner = pair(32_000, 256, 4, "unite")
    for batch in (1, 8, 64):
        took = step_ms(owner, 64, batch, max(steps // 2, 3))
        note("batch", "unite", batch, took, f"256 x 4, batch {batch}")
    # Rows that spell a key in several ids of a member make the block longer for all rows.
    for equal, which in ((True, "equal vocabularies"), (False, "vocabularies that share 3/4")):
        owners = [pair(32_000, 256, 4, "unite", equal=equal) for _ in range(2)]
        whole, bare = batch_ratio(owners, 9)
        measure, on = "tokens per second, batch 8 / batch 1", f"256 x 4, 64 tokens, {which}"
        rows.append(Row(measure, on, whole, 4.0, "x", least=True))
        rows.append(Row(f"{measure}, forwards of one id", on, bare, unit="x", least=True))
    for members in (1, 2, 3, 4):
        took = step_ms(pair(8_000, 64, 8, "unite", members), 64, 1, steps)
        note("members", "unite", members, took, f"{members} of 64 x 8, 8k")
    for name, size in REAL:
        words = real_vocabulary(SHARED, name, size)
        made = {i: (llama(len(words), 32, 2, seed=n), words) for n, i in enumerate("ab")}
        for model, _ in made.values():
            with torch.no_grad():
                model.lm_head.weight *= 20.0  # so that what follows is far from flat: no END
                model.lm_head.weight[words.all_special_ids] = 0.0
        owner = ensemble_of(made, "unite", prefix_cache_gb=0)
        took = step_ms(owner, 64, 1, steps)
        note("vocabulary", "unite", len(words), took, f"{name}, {len(words)} tokens")
    for fusion in FUSIONS:
        took = fusion_alone(pair(32_000, 32, 1, fusion), 9)
        rows.append(Row("a fusion alone", f"{fusion}, two of 32k", took, unit="ms"))
    series = {
        name: {"x": name, "y": "ms a step", "lines": of_label} for name, of_label in lines.items()
    }
    return rows, series


def main() -> None:
    """Measure, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    one_thread()
    rows, series = measured(given.steps)
    save("growth", rows, series=series)


if __name__ == "__main__":
    main()
