"""What is held in memory: KV caches a token, two views of one model, relative representations.

Tensors that are alive are counted, each storage once, so the figures do not depend on what the
allocator keeps. Relative representations are measured at the sizes of Llama-3 x Qwen2.5 (128k and
152k tokens) with random embeddings of 1,024 columns, beside what the members themselves hold.

Run from the repository's root: ``python benchmarks/memory.py`` (about a minute on one CPU thread).
Results go to ``benchmarks/results/memory.json``. ``relative_memory.py`` has peaks and times of the
same at full width.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import Row, one_thread, save
from relative_memory import PAIRS, alignment_of, random_embeddings
from toys import ensemble_of, llama, opened, vocabulary

from langchain_ensemble.fusion import Deepen
from langchain_ensemble.fusion.base import FusionContext, member_distribution

LAYERS, HIDDEN = 4, 256


def alive() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # looking at deprecated objects of torch warns
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    storages = {}
    for tensor in tensors:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def grown(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that are alive after some work and were not before, and what the work gave."""
    before = alive()
    made = work()
    return alive() - before, made


def open_after(ensemble: Any, tokens: int, rows: int, steps: int = 3) -> Any:
    """A request that has read its prompts and decoded some tokens."""
    decoding = opened(ensemble, tokens, rows, max_tokens=64, speculation="off")
    while len(decoding.rows[-1].records) < steps:  # long prompts are read in pieces
        decoding.step()
    return decoding


def caches() -> list[Row]:
    """KV caches of a request over the bytes that its tokens need."""
    needed = 2 * LAYERS * HIDDEN * 4  # keys and values, float32
    model, words = llama(2_000, HIDDEN, LAYERS), vocabulary(2_000)
    rows = []
    for tokens, count in ((100, 1), (1000, 1), (4000, 1), (1000, 8)):
        ensemble = ensemble_of({"a": (model, words)}, "unite", prefix_cache_gb=0)
        open_after(ensemble, 8, count).close()
        held, decoding = grown(lambda e=ensemble, t=tokens, c=count: open_after(e, t, c))
        ratio = held / (needed * count * (tokens + 3))
        on = f"{HIDDEN} x {LAYERS}, {count} x {tokens} tokens"
        more = {"bytes a token": held / (count * (tokens + 3))}
        rows.append(Row("KV cache / bytes its tokens need", on, ratio, unit="x", more=more))
        decoding.close()
    return rows


def views() -> list[Row]:
    """Two views of one model over main alone: weights and caches together."""
    words, tokens, rows = vocabulary(32_000), 96, []  # caches: 1 % of the weights, as 8B at 1k

    def held(names: str) -> int:
        def work() -> Any:
            model = llama(32_000, HIDDEN, LAYERS)
            members = {name: (model, words) for name in names}
            ensemble = ensemble_of(members, "unite", prefix_cache_gb=0)
            return ensemble, open_after(ensemble, tokens, 1)

        size, (ensemble, decoding) = grown(work)
        decoding.close()
        ensemble.unload()
        return size

    ratio = held("ab") / held("a")
    on = f"{HIDDEN} x {LAYERS}, 32k vocabulary, {tokens} tokens"
    rows.append(Row("two views of one model / main alone, memory", on, ratio, 1.1, "x"))
    return rows


def relative() -> list[Row]:
    """What DeePEn holds a member at 128k and 152k tokens, after some steps."""
    pair = PAIRS["llama-3 x qwen2.5"]
    alignment = alignment_of(pair)
    tables = random_embeddings(pair)

    def work() -> Any:
        fuser = Deepen().prepare(
            FusionContext(
                alignment,
                embeddings=lambda place: tables[place],
                embedding_hashes=lambda place: f"memory benchmark {place}",
                remember=lambda key, make: make(),
            )
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            rows = [20 * torch.randn(1, width, generator=generator) for width in pair.widths]
            said = [
                member_distribution(row, keys)
                for row, keys in zip(rows, alignment.members, strict=True)
            ]
            fuser(said, torch.tensor([[0.5, 0.5]]))
        return fuser

    size, _ = grown(work)
    return [
        Row(
            "relative representations a member", "128k x 152k tokens, after 2 steps",
            size / len(pair.widths) / 1e9, 1.0, "GB",
        )
    ]  # fmt: skip


def main() -> None:
    """Count all three."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    one_thread()
    save("memory", [*caches(), *views(), *relative()])


if __name__ == "__main__":
    main()
