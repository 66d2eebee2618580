"""Weights: uniform, learned, and rules that depend on the context, in bits per byte.

Run: ``python benchmarks/weights.py [pair ...]`` (reads the shared data; a quarter of an hour on one
CPU thread). Prints the tables of docs/weights.md and writes ``benchmarks/results/weights.json``.

Rules are fitted on text that the members were trained for, and tested on held-out text, in pieces
of at most 230 bytes; all of them weigh the same distributions. A rule gives every row its weights:

    w_k ~ a_k exp(beta . f_k(row))

with features f_k: minus the entropy, the log of its inverse, what member k gave the bytes so far
(forgotten by a factor a row), how much it agrees with the members' mean (CoRE). ``a`` and ``beta``
are fitted where the table says so, by the same objective as learned weights.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.choose.learn import LogLinearRows
from langchain_ensemble.choose.listening import Sample, listen
from langchain_ensemble.choose.stats import bootstrap_ratio
from langchain_ensemble.decoding.fusing import weighed
from langchain_ensemble.decoding.rating import by_nats, nats_per_byte
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.voices import LOG_TINY
from langchain_ensemble.params import EnsembleParams

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
OUT = ROOT / "benchmarks" / "results" / "weights.json"
PIECE, TAUGHT = 230, 110

PAIRS = {
    "bytes": (("stories260K", "babyllama-361"), "bytes"),
    "average": (("stories260K", "babyllama-361"), "average"),
    "one-vocabulary": (("stories260K", "bitllama-1M"), "average"),
}

Features = Callable[["Rows"], Tensor]


def pieces(text: str, most: int) -> list[str]:
    """Pieces of at most 230 bytes, cut at spaces."""
    found: list[str] = []
    piece = ""
    for word in text.split():
        if len(f"{piece} {word}".encode()) > PIECE:
            found.append(piece.strip())
            piece = ""
        piece = f"{piece} {word}"
    return [p for p in found if p.isascii()][:most]


class Rows:
    """One text: what the members say before each token or byte, [M, N, S]."""

    def __init__(self, size: int, rows: list[LogLinearRows]) -> None:
        self.size = size
        self.said = torch.cat([one.logprobs for one in rows], 1).double()
        self.target = torch.cat([one.targets for one in rows])
        members = len(self.said)
        own = self.said.gather(2, self.target.expand(members, -1)[:, :, None])[:, :, 0]
        self.own = own.clamp_min(LOG_TINY)  # [M, N]
        self.abstain = self._joined(rows, "abstain", torch.zeros(1, members, dtype=torch.bool))
        self.ends = self._joined(rows, "ends", torch.ones(1, members, dtype=torch.float64))
        probs = self.said.exp()
        self.entropy = -(probs * self.said.clamp_min(LOG_TINY)).sum(-1)
        apart = (probs - probs.mean(0)).abs()
        near = (torch.exp(-2 * apart) - math.exp(-2)) / (1 - math.exp(-2))
        self.agreement = (near * probs).sum(-1)
        self.nobody = self.said.amax(0) == -torch.inf

    def _joined(self, rows: list[LogLinearRows], name: str, plain: Tensor) -> Tensor:
        return torch.cat(
            [
                plain.expand(len(one.targets), -1)
                if getattr(one.heard, name) is None
                else getattr(one.heard, name)
                for one in rows
            ]
        )

    def past(self, kept: float) -> Tensor:
        """[M, N] what each member gave what came before, ``kept`` of it a row."""
        total = torch.zeros_like(self.own[:, 0])
        found = []
        for n in range(self.own.shape[1]):
            found.append(total)
            total = kept * total + self.own[:, n]
        return torch.stack(found, 1)

    def nats(self, weights: Tensor, mean: str) -> Tensor:
        """Of the text, with weights [M, N]."""
        share = weighed(weights.T, self.abstain, self.ends)
        if mean == "arithmetic":
            return -(share * self.own.exp().T).sum(-1).log().sum()
        mixed = torch.einsum("nm,mns->ns", share, self.said.clamp_min(LOG_TINY))
        mixed = mixed.masked_fill(self.nobody, -torch.inf)
        return (mixed.logsumexp(-1) - mixed.gather(1, self.target[:, None])[:, 0]).sum()


def nothing(rows: Rows) -> Tensor:
    """No feature: static weights."""
    return rows.own.new_zeros(0, *rows.own.shape)


RULES: list[tuple[str, Features, list[float] | None]] = [
    ("uniform", nothing, []),
    ("learned", nothing, None),
    ("entropy: exp(-H)", lambda r: -r.entropy[None], [1.0]),
    ("entropy: 1/H", lambda r: -r.entropy.clamp_min(1e-6).log()[None], [1.0]),
    (
        "CoRE: agreement / H",
        lambda r: (r.agreement.clamp_min(1e-6) / r.entropy.clamp_min(1e-6)).log()[None],
        [1.0],
    ),
    ("Bayes: P(so far)", lambda r: r.past(1.0)[None], [1.0]),
    ("a exp(-b H), fitted", lambda r: -r.entropy[None], None),
    ("a P(so far)^b, fitted", lambda r: r.past(1.0)[None], None),
    ("the same, 0.9 kept a row", lambda r: r.past(0.9)[None], None),
    ("both, fitted", lambda r: torch.stack([-r.entropy, r.past(0.9)]), None),
]


def weights_of(rows: Rows, features: Features, beta: Tensor, bias: Tensor) -> Tensor:
    """[M, N]."""
    return torch.softmax(torch.einsum("f,fmn->mn", beta, features(rows)) + bias[:, None], 0)


def fitted(texts: list[Rows], features: Features, mean: str) -> tuple[Tensor, Tensor]:
    """``beta`` and ``log a`` that say the texts in the fewest bits."""
    beta = torch.zeros(len(features(texts[0])), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(texts[0].own), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([beta, bias], max_iter=12, line_search_fn="strong_wolfe")
    unit = sum(rows.size for rows in texts)

    def closure() -> Tensor:
        solver.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for rows in texts:
            nats = rows.nats(weights_of(rows, features, beta, bias), mean) / unit
            nats.backward()
            total += nats.detach()
        return total

    solver.step(closure)
    return beta.detach(), (bias - bias.mean()).detach()


def measure(name: str) -> list[dict[str, Any]]:
    """All rules of one pair, by both means."""
    members, fusion = PAIRS[name]
    folders = [str(SHARED / "models" / member) for member in members]
    stories = SHARED / "text" / "tinystories"
    held = pieces((stories / "heldout_dev.txt").read_text("utf-8"), 10**6)
    taught = pieces((stories / "train_2M.txt").read_text("utf-8")[300_000:400_000], TAUGHT)
    with Ensemble(EnsembleParams(members=folders, fusion=fusion)) as engine:

        def read(text: str) -> Rows:
            rows: Any = listen(engine, Sample(text), "log-linear")
            return Rows(len(text.encode()), rows)

        learning, testing = [read(text) for text in taught], [read(text) for text in held]
    found = []
    for mean in ("geometric", "arithmetic"):
        alone = [[float(r.nats(_all_on(k, r), mean)) for r in testing] for k in range(len(members))]
        best = min(range(len(members)), key=lambda k: sum(alone[k]))
        for rule, features, given in RULES:
            beta = torch.tensor(given or [], dtype=torch.float64)
            bias = torch.zeros(len(members), dtype=torch.float64)
            if given is None:
                beta, bias = fitted(learning, features, mean)
            nats = [float(r.nats(weights_of(r, features, beta, bias), mean)) for r in testing]
            sizes = [r.size for r in testing]
            row = {
                "members": "+".join(members),
                "fusion": f"{fusion}, {mean}",
                "best": members[best],
                "best_bits": sum(alone[best]) / (sum(sizes) * math.log(2)),
                "rule": rule,
                "bits_per_byte": sum(nats) / (sum(sizes) * math.log(2)),
                "saved": bootstrap_ratio(nats, alone[best], sizes),
                "beta": beta.tolist(),
                "log_a": bias.tolist(),
            }
            found.append(row)
            print(row["fusion"], rule, round(row["bits_per_byte"], 4), told(row), flush=True)
    return found


def measure_prompts() -> list[dict[str, Any]]:
    """Weights by the prompt, where prompts are of two kinds and each member knows one.

    The members that the package ships; stories and country profiles, half of each piece is the
    prompt and the other half is scored.
    """
    stories = SHARED / "text" / "tinystories" / "heldout_dev.txt"
    facts = SHARED / "text" / "facts" / "factbook.txt"
    texts = [
        *pieces(stories.read_text("utf-8"), 30),
        *pieces(facts.read_text("utf-8")[1_000_000:], 30),
    ]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    sizes = [len(text.encode()) for _, text in halves]
    with Ensemble(EnsembleParams(members=demo_members(), fusion="average")) as engine:
        engine.load()
        with engine.alone() as (built, _):
            judged = [
                [_ended(nats_per_byte(voice, prompt)) for voice in built.voices]
                for prompt, _ in halves
            ]
        names = engine.names

        def nats(weights: Callable[[list[float]], Any]) -> list[float]:
            return [
                -engine.score(text, prompt, weights=weights(said)).logprob
                for (prompt, text), said in zip(halves, judged, strict=True)
            ]

        alone = {
            name: nats(lambda _, k=k: [float(i == k) for i in range(2)])
            for k, name in enumerate(names)
        }
        best = min(alone, key=lambda name: sum(alone[name]))
        rules: list[tuple[str, list[float]]] = [*((f"{n} alone", alone[n]) for n in names)]
        rules.append(("uniform", nats(lambda _: "uniform")))
        for tau in (1.0, 0.5, 0.25, 0.1, 0.05):
            rules.append((f"prompt, tau {tau:g}", nats(lambda said, t=tau: by_nats(said, t))))
    found = []
    for rule, said in rules:
        saved = bootstrap_ratio(said, alone[best], sizes)
        bits = sum(said) / (sum(sizes) * math.log(2))
        found.append({"rule": rule, "best": best, "bits_per_byte": bits, "saved": saved})
        print(rule, round(bits, 4), told(found[-1]), flush=True)
    return found


def _ended(reading: Generator[int, None, float]) -> float:
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return float(done.value)


def _all_on(member: int, rows: Rows) -> Tensor:
    weights = torch.zeros_like(rows.own)
    weights[member] = 1.0
    return weights


def tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """The tables of docs/weights.md: what each rule saves against the better member, percent."""
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for name in PAIRS:
        for row in results.get(name, []):
            columns.setdefault((row["members"], row["fusion"]), {})[row["rule"]] = told(row)
    heads = [f"{members}, {fusion}" for members, fusion in columns]
    lines = [f"| weights | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for rule, _, _ in RULES:
        lines.append(f"| {rule} | {' | '.join(cells[rule] for cells in columns.values())} |")
    lines += ["", "| weights | bits per byte | saved, % |", "|---|---|---|"]
    for row in results.get("prompts", []):
        lines.append(f"| {row['rule']} | {row['bits_per_byte']:.3f} | {told(row)} |")
    return "\n".join(lines)


def told(row: dict[str, Any]) -> str:
    """``4.40 [3.80, 5.02]``."""
    mean, low, high = (100 * x for x in row["saved"])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*PAIRS, "prompts"]:
        made = measure_prompts() if name == "prompts" else measure(name)
        rows = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
        rows[name] = made
        OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(tables(rows))


if __name__ == "__main__":
    main()
