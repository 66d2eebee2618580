"""Bits per byte of the rest of a text after its beginning: uniform weights and ``"prompt"``.

Run: ``python benchmarks/quality_prompted.py`` (one thread; reads the shared models). Writes
``benchmarks/results/quality_prompted.json`` and goes on where it was broken off.

Each held-out piece is cut at the first space behind 100 bytes: what is before is the prompt, by
which ``weights="prompt"`` weighs the members.
"""

from __future__ import annotations

import sys

import torch
from quality_bits import DEMO, FUSIONS, HELD_OUT, MODELS, ensemble
from quality_common import Store, pieces

SETS = ((DEMO, DEMO[0]), (MODELS[0:3:2], MODELS[0]), (MODELS[:2], MODELS[0]))
CUT = 100
USED = ("average geometric", "bytes geometric")


def main() -> None:
    """Measure what is not there yet."""
    torch.set_num_threads(1)
    texts = [(text[: text.index(" ", CUT)], text) for text in pieces(HELD_OUT) if " " in text[CUT:]]
    sizes = [len(text) - len(before) for before, text in texts]
    store = Store("quality_prompted", {"held_out": HELD_OUT, "sizes": sizes, "cut": CUT})
    for (names, first), label in ((one, label) for label in USED for one in SETS):
        key = {"members": list(names), "main": first, "fusion": label}
        if store.find(**key):
            continue
        ways = {"uniform": "uniform", "prompt": "prompt"}
        ways |= {f"all on {name}": {k: float(k == name) for k in names} for name in names}
        nats: dict[str, list[float]] = {way: [] for way in ways}
        with ensemble(names, first, FUSIONS[label]).load().engine as owner:
            for before, text in texts:
                for way, weights in ways.items():
                    scored = owner.score(text[len(before) :], before, weights=weights)
                    nats[way].append(round(-float(scored.logprob), 4))
        store.add(*({**key, "gate": "always", "weights": way, "nats": nats[way]} for way in ways))
        sys.stdout.write(f"{key} { {way: round(sum(found), 1) for way, found in nats.items()} }\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
