"""Fusion over bytes: what its two bounds cost, how long its steps are, what a step takes.

Run: ``python benchmarks/byte_fusion.py`` (minutes on one CPU thread; reads the shared data).
Prints five tables and writes ``benchmarks/results/byte_fusion.json``; with ``shares``, ``steps``,
``speed``, ``names`` or ``choices`` behind it only those.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bits_per_byte import PROMPT, ROOT, SHARED, pieces
from transformers import AutoTokenizer

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.decoding import byte_score
from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.path_tracker import PathTracker
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion import Bytes, Unite, bytes_walk
from langchain_ensemble.fusion.base import FusionContext, MemberDistribution, member_distribution
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.vocab.alignment import align
from langchain_ensemble.vocab.byte_trie import ByteTrie, tree_of
from langchain_ensemble.vocab.vocabulary import Vocabulary

SHARES = (1e-1, 1e-2, 1e-3, 1e-4)
LOOSE = (0.0, 0.01, 0.03, 0.1)
PIECES = int(os.environ.get("PIECES", "40"))
STARTS = (PROMPT, "Tom and Mia went to the", "One day, a big dog")
PAIRS = (("stories260K", "babyllama-361"), ("stories260K", "bitllama-1M"))
CAPITALS = {
    "Japan": "Tokyo",
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Norway": "Oslo",
}
LONG = b"The quick brown fox jumps over the lazy dog and then goes home to sleep for a long time"


def say(line: str) -> None:
    """Print now."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def opened(names: tuple[str, ...], **settings: Any) -> Ensemble:
    """An ensemble of shared models that fuses bytes."""
    members = [str(SHARED / "models" / name) for name in names]
    return Ensemble(EnsembleParams(members=members, fusion="bytes", **settings))


def shares() -> list[dict[str, Any]]:
    """Bits per byte by the least share that is read."""
    rows, texts = [], pieces()[:PIECES]
    with opened(PAIRS[0]) as owner:
        for share in SHARES:
            with mock.patch.object(byte_score, "LEAST_SHARE", share):
                found = []
                for weights in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0]):
                    scores = [owner.score(text, weights=weights) for text in texts]
                    size = sum(s.num_bytes for s in scores)
                    found.append(sum(s.bits_per_byte * s.num_bytes for s in scores) / size)
            owner._scores._last = None
            rows.append({"share": share, "fused": found[0], "alone": found[1:]})
            say(f"| {share:g} | {found[0]:.4f} | {found[1]:.4f} | {found[2]:.4f} |")
    return rows


def steps() -> list[dict[str, Any]]:
    """Bytes a step, and how much of the text is that of single bytes, by what a step leaves out."""
    rows = []
    for pair in PAIRS:
        for main in pair:
            with opened(pair, main=main) as owner:
                exact: list[str] = []
                for loose in LOOSE:
                    texts, count = [], 0
                    tight = bytes_walk.math.log1p(-loose)
                    rare = bytes_walk.math.log(max(loose, 0.01) / 10)
                    with mock.patch.multiple(bytes_walk, LOOSE=loose, TIGHT=tight, RARE=rare):
                        for start in STARTS:
                            (answer,), *_ = owner.generate([start], RequestParams(max_tokens=60))
                            texts.append(answer.text[:60])
                            taken = size = 0
                            for token in answer.tokens:
                                taken, size = taken + 1, size + len(token.bytes)
                                if size >= len(texts[-1].encode()):
                                    break
                            count += taken
                    exact = exact or texts
                    same = sum(
                        a.startswith(b) or b.startswith(a)
                        for a, b in zip(exact, texts, strict=True)
                    )
                    size = sum(len(text.encode()) for text in texts)
                    row = {"pair": pair, "main": main, "loose": loose, "bytes": size / count}
                    rows.append({**row, "same": same, "texts": texts})
                    found = f"{size / count:.2f} | {same} of {len(STARTS)}"
                    say(f"| {main} | {pair[1]} | {loose:g} | {found} |")
    return rows


def speed(names: tuple[str, ...] = ("qwen2.5", "llama-3")) -> dict[str, float]:
    """Milliseconds of a step that are not the models', random logits, one row."""
    tokenizers = [AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name) for name in names]
    made = [Vocabulary(tokenizer) for tokenizer in tokenizers]
    aligned = align(list(zip(names, made, strict=True)))
    trees = [ByteTrie(vocabulary) for vocabulary in made]
    context = FusionContext(
        alignment=aligned.alignment,
        embeddings=lambda i: torch.empty(0),
        embedding_hashes=lambda i: "",
        tries=[tree.trie for tree in trees],
        union_trie=tree_of(aligned.key_bytes),
    )
    torch.manual_seed(0)
    logits = [torch.randn(1, vocabulary.width) * 4 for vocabulary in made]
    weights = torch.tensor([[0.5, 0.5]])

    def run(follow: Callable[[int], list[MemberDistribution]], fuser: Any) -> float:
        times = []
        for at in range(0, len(LONG), 3):
            begun = time.perf_counter()
            float(fuser(follow(at), weights).logprobs.max())
            times.append(time.perf_counter() - begun)
        return 1000 * min(times[3:])

    paths = [PathTracker(tree, 1) for tree in trees]
    open_ = [BoundaryTracker(tree, 1) for tree in trees]

    def said() -> list[MemberDistribution]:
        pairs = zip(logits, aligned.alignment.members, strict=True)
        return [member_distribution(row, keys) for row, keys in pairs]

    def along(at: int) -> list[MemberDistribution]:
        told = zip(said(), paths, strict=True)
        return [replace(d, paths=p.follow(d, [LONG[:at]], [at], [0])[0]) for d, p in told]

    def weighed(at: int) -> list[MemberDistribution]:
        told = said()
        for one, tracker in zip(told, open_, strict=True):
            tracker.observe(one, [LONG[:at]], [True], [0])
        return told

    with torch.inference_mode():
        found = {
            "bytes": run(along, Bytes().prepare(context)),
            "unite": run(weighed, Unite().prepare(context)),
        }
    for name, value in found.items():
        say(f"| {name} | {value:.1f} |")
    return found


def choices() -> list[dict[str, Any]]:
    """Four continuations of one prompt, which is read once or by each of them; ms of CPU."""
    rows, text = [], pieces()[0]
    ends = [text[n : n + 12] for n in (200, 210, 190, 180)]
    members = [str(SHARED / "models" / name) for name in PAIRS[0]]
    for fusion in ("average", "bytes"):
        times: dict[str, list[float]] = {"once": [], "each": []}
        for _ in range(7):
            for name, cache in (("once", 1.0), ("each", 0.0)):
                params = EnsembleParams(members=members, fusion=fusion, prefix_cache_gb=cache)
                with Ensemble(params) as owner:
                    owner.score(text[:30])  # whatever is made at first use
                    begin = time.process_time()
                    for end in ends:
                        owner.score(end, text[:200])
                    times[name].append((time.process_time() - begin) * 1e3)
        each, once = (sorted(times[name])[3] for name in ("each", "once"))
        rows.append({"fusion": fusion, "each": each, "once": once})
        say(f"| {fusion} | {each:.0f} | {once:.0f} | {each / once:.2f} |")
    return rows


def names() -> list[dict[str, Any]]:
    """Capitals that one of the two embedded members knows, as both say them together."""
    rows = []
    for mean in ("arithmetic", "geometric"):
        llm = EnsembleLLM.demo(fusion={"name": "bytes", "mean": mean}, max_tokens=30)
        asked = [f"Question: What is the capital of {land}?\nAnswer:" for land in CAPITALS]
        said = [answer.split(".")[0] for answer in llm.batch(asked)]
        right = sum(name in one for name, one in zip(CAPITALS.values(), said, strict=True))
        rows.append({"mean": mean, "right": right, "of": len(said), "said": said})
        say(f"| {mean} | {right} of {len(said)} | {said[0].split()[-1]} |")
    return rows


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "shares": ("| least share read | fused | " + " | ".join(PAIRS[0]) + " |", shares),
    "steps": ("| main | with | left out | bytes a step | same text |", steps),
    "speed": ("| fusion | ms a step |", speed),
    "names": ("| mean | capitals right | Japan's |", names),
    "choices": ("| fusion | each reads the prompt, ms | read once, ms | ratio |", choices),
}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    out = Path(ROOT) / "benchmarks" / "results" / "byte_fusion.json"
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in sys.argv[1:] or PARTS:
        head, measure = PARTS[name]
        say(head)
        found[name] = measure()
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
