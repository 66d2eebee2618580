"""Bits per byte of fused small real models: all pairs and triples, every fusion, gate and weights.

Run: ``python benchmarks/quality_bits.py [--only WORD ...]`` (one thread; reads the shared models).
Writes ``benchmarks/results/quality_bits.json`` row by row and goes on where it was broken off.

Weights are learned on other text (``train_2M.txt``) for the same fusion: bits per byte over a grid
(pairs: 21 points and the parabola through the three best; triples: 66 points).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from quality_common import GATES, ROOT, SHARED, Store, pieces

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import FUSIONS as SHIPPED
from langchain_ensemble.params import EnsembleParams

MODELS = ("stories260K", "bitllama-1M", "babyllama-361", "babyllama-105")
DEMO = ("demo-stories", "demo-facts")
"""The members that the package ships: two vocabularies, and one far better at stories."""
HELD_OUT, OTHER, NUM_OTHER = "tinystories/heldout_dev.txt", "tinystories/train_2M.txt", 48
FUSIONS: dict[str, Any] = {
    "average geometric": {"name": "average", "mean": "geometric"},
    "average arithmetic": {"name": "average", "mean": "arithmetic"},
    "deepen": "deepen",
    "unite": "unite",
    "gac": "gac",
    "bytes geometric": {"name": "bytes", "mean": "geometric"},
    "bytes arithmetic": {"name": "bytes", "mean": "arithmetic"},
}
Weights = tuple[float, ...]


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


def ensemble(names: Sequence[str], main: str, fusion: Any) -> Ensemble:
    """An ensemble of some of the models under these names."""
    members = [{"name": n, "model": place(n), "dtype": "float32"} for n in names]
    return Ensemble(EnsembleParams(members=members, main=main, fusion=fusion))


def grid(count: int) -> list[Weights]:
    """Weights to try: 21 for two members, 66 for three.

    Args:
        count: Of members.

    Returns:
        Points that sum to 1.
    """
    if count == 2:
        return [(round(n / 20, 2), round(1 - n / 20, 2)) for n in range(21)]
    tenths = range(11)
    return [
        (a / 10, b / 10, round(1 - a / 10 - b / 10, 1))
        for a in tenths
        for b in tenths
        if a + b <= 10
    ]


def best_of(points: Sequence[Weights], nats: Sequence[float]) -> Weights:
    """The weights with the fewest nats; for pairs, the vertex of a parabola around them.

    Args:
        points: What :func:`grid` gives.
        nats: One sum each.

    Returns:
        Weights that sum to 1.
    """
    at = min(range(len(points)), key=lambda n: nats[n])
    if len(points[0]) != 2 or at in (0, len(points) - 1):
        return points[at]
    left, middle, right = nats[at - 1 : at + 2]
    bend = left - 2 * middle + right
    shift = 0.0 if bend <= 0 or not math.isfinite(bend) else 0.5 * (left - right) / bend
    first = round(points[at][0] + 0.05 * shift, 3)
    return (first, round(1 - first, 3))


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


def learned(owner: Ensemble, texts: Sequence[str], count: int) -> Weights:
    """Weights with the fewest bits on other text, under the ensemble's own fusion.

    Args:
        owner: The ensemble.
        texts: Other text.
        count: Of members.

    Returns:
        The weights.
    """
    tried = grid(count)
    sums = [0.0] * len(tried)
    for text in texts:  # texts outside: other weights for the same text cost no forward
        for n, weights in enumerate(tried):
            sums[n] += nats_of(owner, text, weights=weights)
    return best_of(tried, sums)


def measure(
    names: Sequence[str], main: str, label: str, wanted: Sequence[str], data: tuple[Any, Store]
) -> None:
    """All weights and gates of one set of members, main and fusion; one row each.

    Weights are learned where all positions are fused, and used behind the gates too.

    Args:
        names: Members.
        main: Whose vocabulary is walked.
        label: One of :data:`FUSIONS`.
        wanted: Names of gates.
        data: Held-out pieces and other pieces; where rows go.
    """
    (held_out, other), store = data
    key = {"members": list(names), "main": main, "fusion": label}
    todo = [gate for gate in wanted if not store.find(**key, gate=gate)]
    if not todo:
        return
    started = time.process_time()
    with ensemble(names, main, FUSIONS[label]) as owner:
        ways: dict[str, Any] = {"uniform": "uniform"}
        for n, name in enumerate(names):
            ways[f"all on {name}"] = tuple(float(n == k) for k in range(len(names)))
        before = store.find(**key, weights="learned")
        ways["learned"] = before["values"] if before else learned(owner, other, len(names))
        nats: dict[tuple[str, str], list[float]] = {(g, way): [] for g in todo for way in ways}
        for text in held_out:
            for (gate, way), found in nats.items():
                how = {} if gate == "always" else {"gate": GATES[gate]}
                found.append(round(nats_of(owner, text, weights=ways[way], **how), 4))
    rows = [
        {**key, "gate": gate, "weights": way, "values": ways[way], "nats": found}
        for (gate, way), found in nats.items()
    ]
    store.add(*rows)
    spent = round(time.process_time() - started, 1)
    total = {f"{gate} {way}": round(sum(found), 1) for (gate, way), found in nats.items()}
    sys.stdout.write(f"{names} main {main} {label}: {total} {ways['learned']} {spent} s\n")
    sys.stdout.flush()


def alone(texts: Sequence[str], store: Store) -> None:
    """Every member by itself, along its own ids.

    Args:
        texts: Held-out pieces.
        store: Where rows go.
    """
    for name in (*MODELS, *DEMO):
        key = {"members": [name], "fusion": "alone"}
        if not store.find(**key):
            with ensemble([name], name, "average") as owner:
                nats = [round(nats_of(owner, text), 4) for text in texts]
            store.add({**key, "main": name, "weights": "uniform", "nats": nats})


def sets() -> list[tuple[tuple[str, ...], str]]:
    """Members and main: every pair with each as main, every triple with its first as main."""
    pairs = [(pair, main) for pair in (*combinations(MODELS, 2), DEMO) for main in pair]
    return pairs + [(triple, triple[0]) for triple in combinations(MODELS, 3)]


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
    for names, first in sets():
        for label in FUSIONS:
            wanted = all(word in f"{label} {first}" for word in given.only)
            if wanted and label.split()[0] in SHIPPED:
                measure(names, first, label, given.gates, ((held_out, other), store))


if __name__ == "__main__":
    main()
