"""Bits per byte of fused small real models: all pairs and triples, every fusion, gate and weights.

Run: ``python benchmarks/quality_bits.py [--only WORD ...]`` (one thread; reads the shared models).
Writes ``benchmarks/results/quality_bits.json`` row by row and goes on where it was broken off.

Weights are learned by ``llm.calibrate`` on other text (``train_2M.txt``), for the same fusion where
every position is fused, and used behind the gates too. Fusions that tell are measured with
``weights="online"`` as well, ungated.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from quality_common import GATES, ROOT, SHARED, Store, pieces

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.errors import EnsembleWarning
from langchain_ensemble.params import FUSIONS as SHIPPED

MODELS = ("stories260K", "bitllama-1M", "babyllama-361", "babyllama-105")
DEMO = ("demo-stories", "demo-facts")
"""The members that the package ships: two vocabularies, and one far better at stories."""
HELD_OUT, OTHER, NUM_OTHER = "tinystories/heldout_dev.txt", "tinystories/train_2M.txt", 96
FUSIONS: dict[str, Any] = {
    "average geometric": {"name": "average", "mean": "geometric"},
    "average arithmetic": {"name": "average", "mean": "arithmetic"},
    "deepen": "deepen",
    "unite": "unite",
    "gac": "gac",
    "bytes geometric": {"name": "bytes", "mean": "geometric"},
    "bytes arithmetic": {"name": "bytes", "mean": "arithmetic"},
}


def place(name: str) -> str:
    """Where a member lies.

    Args:
        name: One of :data:`MODELS` or :data:`DEMO`.

    Returns:
        Its folder.
    """
    if name in DEMO:
        return str(ROOT / "langchain_ensemble/demo" / name.removeprefix("demo-"))
    return str(SHARED / "models" / name)


def ensemble(names: Sequence[str], main: str, fusion: Any) -> EnsembleLLM:
    """An ensemble of some of the models under these names."""
    members = [{"name": n, "model": place(n), "dtype": "float32"} for n in names]
    return EnsembleLLM(members=members, main=main, fusion=fusion)


def nats_of(owner: Ensemble, text: str, **how: Any) -> float:
    """Minus the log-probability of a text, by the score of the ensemble.

    Args:
        owner: The ensemble.
        text: A piece.
        how: Weights or member.

    Returns:
        Nats.
    """
    return -float(owner.score(text, **how).logprob)


def learned(llm: EnsembleLLM, texts: Sequence[Any]) -> dict[str, float]:
    """Weights that ``calibrate`` finds on other text; half of it teaches.

    Args:
        llm: The ensemble.
        texts: Texts, or pairs of a prompt and a text.

    Returns:
        Name to weight.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnsembleWarning)  # DeePEn's bits are not convex: known
        found = llm.calibrate(texts).weights
    return {name: round(weight, 4) for name, weight in found.items()}


def measure(
    names: Sequence[str], main: str, label: str, wanted: Sequence[str], data: tuple[Any, Store]
) -> None:
    """All weights and gates of one set of members, main and fusion; one row each.

    Args:
        names: Members.
        main: Whose vocabulary is walked.
        label: One of :data:`FUSIONS`.
        wanted: Names of gates.
        data: Held-out pieces and other pieces; where rows go.
    """
    (held_out, other), store = data
    key = {"members": list(names), "main": main, "fusion": label}
    if label.startswith("bytes"):  # a score of bytes has no tokens at which a gate could open
        wanted = [gate for gate in wanted if gate == "always"]
    ways: dict[str, Any] = {"uniform": "uniform", "learned": None}
    ways |= {"online": "online"} if label.startswith("average") else {}
    ways |= {f"all on {name}": {k: float(k == name) for k in names} for name in names}
    nats: dict[tuple[str, str], list[float]] = {
        (gate, way): []
        for gate in wanted
        for way in ways
        if gate == "always" or way in ("uniform", "learned")
        if not store.find(**key, gate=gate, weights=way)
    }
    if not nats:
        return
    started = time.process_time()
    llm = ensemble(names, main, FUSIONS[label])
    before = store.find(**key, weights="learned")
    ways["learned"] = before["values"] if before else _whole(learned(llm, other))
    with llm.load().engine as owner:
        for text in held_out:
            for (gate, way), found in nats.items():
                how = {} if gate == "always" else {"gate": GATES[gate]}
                found.append(round(nats_of(owner, text, weights=ways[way], **how), 4))
    rows = [
        {**key, "gate": gate, "weights": way, "values": ways[way], "nats": found}
        for (gate, way), found in nats.items()
    ]
    mine = [r for r in rows if not store.find(**key, gate=r["gate"], weights=r["weights"])]
    store.add(*mine)  # another process may have measured the same meanwhile
    spent = round(time.process_time() - started, 1)
    total = {f"{gate} {way}": round(sum(found), 1) for (gate, way), found in nats.items()}
    sys.stdout.write(f"{names} main {main} {label}: {total} {ways['learned']} {spent} s\n")
    sys.stdout.flush()


def _whole(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def alone(texts: Sequence[str], store: Store) -> None:
    """Every member by itself, along its own ids.

    Args:
        texts: Held-out pieces.
        store: Where rows go.
    """
    for name in (*MODELS, *DEMO):
        key = {"members": [name], "fusion": "alone"}
        if not store.find(**key):
            with ensemble([name], name, "average").load().engine as owner:
                nats = [round(nats_of(owner, text), 4) for text in texts]
            store.add({**key, "main": name, "weights": "uniform", "nats": nats})


SETS: tuple[tuple[tuple[str, ...], str], ...] = (
    (MODELS[0:3:2], MODELS[0]),
    (MODELS[0:2], MODELS[0]),
    (MODELS[0:3:2], MODELS[2]),
    (DEMO, DEMO[0]),
    (MODELS[:3], MODELS[0]),
    (MODELS[1:3], MODELS[1]),
    (DEMO, DEMO[1]),
    (MODELS[0:4:3], MODELS[0]),
    (MODELS[2:4], MODELS[2]),
    (MODELS[1:3], MODELS[2]),
    (MODELS[1:4:2], MODELS[1]),
    (MODELS[0:2], MODELS[1]),
    (MODELS[0:4:3], MODELS[3]),
    (MODELS[2:4], MODELS[3]),
    (MODELS[1:4:2], MODELS[3]),
    ((MODELS[0], *MODELS[2:]), MODELS[0]),
)
"""Members and main: every pair, each as main; triples with and without one vocabulary. Those that
most is learned from come first."""


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", nargs="*", default=list(GATES), choices=list(GATES))
    parser.add_argument("--only", nargs="*", default=[], help="words of a fusion's or main's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    held_out, other = pieces(HELD_OUT), pieces(OTHER, NUM_OTHER)
    fixed = {
        "held_out": HELD_OUT,
        "pieces": len(held_out),
        "sizes": [len(text.encode()) for text in held_out],
        "other": OTHER,
        "other_pieces": len(other),
    }
    store = Store("quality_bits", fixed)
    alone(held_out, store)
    for names, first in SETS:
        for label in FUSIONS:
            wanted = all(word in f"{label} {first}" for word in given.only)
            if wanted and label.split()[0] in SHIPPED:
                measure(names, first, label, given.gates, ((held_out, other), store))


if __name__ == "__main__":
    main()
