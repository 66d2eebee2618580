"""Bits per byte of fused small real models: every fusion, each as main, boundaries on and off.

Run: ``python benchmarks/bits_per_byte.py`` (minutes on one CPU thread; reads the shared data).
Prints a table and writes ``benchmarks/results/bits_per_byte.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
PROMPT = "Once upon a time, there was a little"
PIECE, PIECES = 230, int(os.environ.get("PIECES", "40"))
FUSIONS: list[tuple[str, Any]] = [
    ("average geometric", "average"),
    ("average arithmetic", {"name": "average", "mean": "arithmetic"}),
    ("deepen", "deepen"),
    ("unite", "unite"),
    ("gac", "gac"),
]


def pieces() -> list[str]:
    """Cut the held-out text into pieces of at most 230 bytes, at spaces, without newlines."""
    text = (SHARED / "text" / "tinystories" / "heldout_dev.txt").read_text()
    found: list[str] = []
    for story in text.split("\n\n"):
        words, piece = story.split(), ""
        for word in words:
            if len(f"{piece} {word}".encode()) > PIECE:
                found.append(piece.strip())
                piece = ""
            piece = f"{piece} {word}"
    return [p for p in found if p.isascii()][:PIECES]


def bits(owner: Ensemble, texts: list[str], **how: Any) -> float:
    """Bits per byte over all pieces."""
    scores = [owner.score(text, **how) for text in texts]
    total = sum(s.bits_per_byte * s.num_bytes for s in scores)
    return total / sum(s.num_bytes for s in scores)


def sample(owner: Ensemble) -> tuple[str, float]:
    """A greedy text of 200 characters and its mean key length in bytes."""
    text, lengths = "", []
    with owner.open([PROMPT], RequestParams(max_tokens=230)) as decoding:
        while not decoding.done and len(text) < 200:
            for piece in decoding.step():
                text += piece.text
                lengths += [len(t.bytes) for t in piece.tokens if t.bytes]
    return text[:200], sum(lengths) / max(1, len(lengths))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    texts = pieces()
    names = ["stories260K", "babyllama-361"]
    rows: list[dict[str, Any]] = []
    for main_name in names:
        for label, fusion in FUSIONS:
            for boundaries in ("discount", "vote"):
                params = EnsembleParams(
                    members=[str(SHARED / "models" / n) for n in names],
                    main=main_name,
                    fusion=fusion,
                    open_boundaries=boundaries,
                )
                with Ensemble(params) as owner:
                    if not rows or rows[-1]["main"] != main_name:
                        alone = {n: bits(owner, texts, member=n) for n in names}
                        for name, value in alone.items():
                            sys.stdout.write(f"{name} alone: {value:.4f}\n")
                    text, mean = sample(owner)
                    row = {
                        "main": main_name,
                        "fusion": label,
                        "open_boundaries": boundaries,
                        "bits_per_byte": bits(owner, texts),
                        "alone": alone,
                        "mean_key_bytes": mean,
                        "text": text,
                    }
                rows.append(row)
                sys.stdout.write(
                    f"| {main_name} | {label} | {boundaries} | {row['bits_per_byte']:.4f} | "
                    f"{mean:.2f} | {text!r} |\n"
                )
                sys.stdout.flush()
    out = ROOT / "benchmarks" / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "bits_per_byte.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
