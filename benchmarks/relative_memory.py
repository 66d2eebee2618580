"""Peak memory and time of DeePEn's relative representations at the sizes of real vocabularies.

Two pairs with random embeddings, each step in a fresh process:

* llama-2 x mistral-v3 (32,000 and 32,768 tokens, 24,085 common, width 4,096), random logits;
* llama-3 x qwen2.5 (128,256 and 151,936 tokens, 109,566 common, width 1,024). Both models (one
  layer, tied heads, logits scaled so that the best 50 tokens hold 90 % of the mass) run in the same
  process.

Neither pair's tables would fit the storage of a member, so rows are made when asked for and the
ones used last are kept. Told are the bytes a member stores at most, on the disk and in memory, and
a step with new rows beside the same step again.

Run from the repository's root: ``python benchmarks/relative_memory.py``, two minutes; results go to
``benchmarks/results/relative_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Row, peak_gib, save
from torch import Tensor

from langchain_ensemble.fusion import Deepen
from langchain_ensemble.fusion.base import (
    Alignment,
    FusionContext,
    MemberKeys,
    member_distribution,
)
from langchain_ensemble.fusion.rows import HotRows
from langchain_ensemble.store import Store

LIMIT_GIB = 6.0
LIMIT_GB = 1.0


@dataclass(frozen=True)
class Pair:
    """Sizes of two members."""

    names: tuple[str, str]
    widths: tuple[int, int]
    common: int
    hidden: int


PAIRS = {
    "llama-2 x mistral-v3": Pair(("llama-2", "mistral-v3"), (32_000, 32_768), 24_085, 4096),
    "llama-3 x qwen2.5": Pair(("llama-3", "qwen2.5"), (128_256, 151_936), 109_566, 1024),
}


def alignment_of(pair: Pair) -> Alignment:
    """Keys of two members whose first ``common`` ids are the same tokens; the last id is END."""
    main, other = pair.widths
    size = main + other - pair.common
    members = []
    for name, width, offset in ((pair.names[0], main, 0), (pair.names[1], other, main)):
        representative = torch.arange(width)
        representative[-1] = -1
        to_union = torch.arange(width)
        if offset:
            to_union[pair.common :] = torch.arange(main, size)
        to_union[-1] = -1
        from_union = torch.full((size,), -1)
        from_union[to_union[:-1]] = torch.arange(width - 1)
        members.append(
            MemberKeys(
                name,
                width,
                representative,
                to_union,
                from_union,
                from_union,
                torch.tensor([width - 1]),
                torch.zeros(width, dtype=torch.bool),
            )
        )
    return Alignment(tuple(members), size, torch.arange(pair.common), "benchmark")


def random_embeddings(pair: Pair) -> list[Tensor]:
    """The common tokens mean nearly the same to both members, up to a rotation."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(width, pair.hidden, generator=generator).mul_(0.02) for width in pair.widths
    ]


def one_layer_models(pair: Pair) -> list[Any]:
    """Llama bodies of one layer with tied heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    models = []
    for seed, width in enumerate(pair.widths):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=width,
            hidden_size=pair.hidden,
            intermediate_size=2 * pair.hidden,
            num_hidden_layers=1,
            num_attention_heads=8,
            tie_word_embeddings=True,
        )
        models.append(LlamaForCausalLM(config).eval())
    return models


def sharpen(logits: Tensor) -> Tensor:
    """Scale rows so that the best 50 tokens hold 90 % of the mass."""
    low, high = torch.zeros(len(logits), 1), torch.full((len(logits), 1), 1e4)
    for _ in range(60):
        middle = (low + high) / 2
        held = torch.softmax(logits * middle, -1).topk(50, dim=-1).values.sum(-1, keepdim=True)
        low, high = torch.where(held < 0.9, middle, low), torch.where(held < 0.9, high, middle)
    return logits * high


def measure(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Prepare and decode in this process; what it took."""
    pair = PAIRS[name]
    alignment = alignment_of(pair)
    models = one_layer_models(pair) if pair.hidden < 4096 else []
    tables = (
        [m.get_input_embeddings().weight.detach() for m in models]
        if models
        else random_embeddings(pair)
    )
    before = peak_gib()
    started = time.perf_counter()
    context = FusionContext(
        alignment,
        embeddings=lambda i: tables[i],
        embedding_hashes=lambda i: f"benchmark {name} {i}",
        remember=Store(folder).remember,
    )
    fuser = Deepen(support_cap=512).prepare(context)
    prepared = time.perf_counter() - started
    prepared_peak = peak_gib()
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    weights = torch.tensor([[0.5, 0.5]])
    ids = torch.tensor([[1, 2, 3]])
    for _ in range(steps):
        with torch.no_grad():
            rows = [m(ids).logits[:, -1] for m in models] or [
                torch.randn(1, width, generator=generator) for width in pair.widths
            ]
        distributions = [
            member_distribution(sharpen(row.float()), keys)
            for row, keys in zip(rows, alignment.members, strict=True)
        ]
        fused = fuser(distributions, weights)
        ids = torch.cat([ids, fused.logprobs.argmax(-1)[:, None].clamp_max(pair.common)], -1)
    new = (time.perf_counter() - started) / steps
    started = time.perf_counter()
    fuser(distributions, weights)
    again = time.perf_counter() - started
    total = float(fused.logprobs.exp().sum() + fused.end.exp().sum())
    stored = [rows.stored_bytes for rows in fuser._rows if isinstance(rows, HotRows)]
    return {
        "prepare_s": round(prepared, 1),
        "step_s": round(new, 2),
        "step_again_s": round(again, 3),
        "stored_gb": round(max(stored) / 1e9, 3),
        "disk_gb": round(max((entry.size for entry in Store(folder).list()), default=0) / 1e9, 3),
        "hot_rows": min(rows.room for rows in fuser._rows),
        "peak_members_gib": round(before, 2),
        "peak_prepare_gib": round(prepared_peak, 2),
        "peak_gib": round(peak_gib(), 2),
        "rows_sum_to": round(total, 6),
    }


def fresh(name: str, folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    command += ["--steps", str(steps), "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure both pairs, cold and from the disk cache; print a table and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=list(PAIRS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pair", choices=list(PAIRS), action="append")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure(given.one, given.folder, given.steps)))
        return
    rows = []
    for name in given.pair or PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "from the disk cache"):
                run = fresh(name, Path(folder), given.steps, given.threads)
                on = f"{name}, {state}"
                print(on, run, flush=True)
                more = {"more": run} if state == "cold" else {}
                rows += [
                    Row("DeePEn: stored a member, memory", on, run["stored_gb"], LIMIT_GB, "GB"),
                    Row("DeePEn: stored a member, disk", on, run["disk_gb"], LIMIT_GB, "GB"),
                    Row(
                        "DeePEn: peak of the process", on, run["peak_gib"], LIMIT_GIB, "GiB", **more
                    ),
                    Row("DeePEn: prepare", on, run["prepare_s"], unit="s"),
                    Row("DeePEn: a step, new rows", on, run["step_s"], unit="s"),
                    Row("DeePEn: the same step again", on, run["step_again_s"], unit="s"),
                ]
    save("relative_memory", rows)
    if not all(row.holds is not False for row in rows):
        raise SystemExit("a bar is not held")


if __name__ == "__main__":
    main()
