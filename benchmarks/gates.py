"""Long greedy answers with and without gates: text, auxiliaries' forwards, time.

Small story-telling members with different tokenizers answer story prompts, every fusion ungated
("always") and behind both gates. A third model that is no member of the pair judges the text.

Run: ``python benchmarks/gates.py`` (reads the shared data; goes on where it was broken off). Prints
a table and writes ``benchmarks/results/gates.json``; ``--table`` prints what is there.

* fused: share of tokens in which more than one member had a say;
* bits: bits per byte of the answers under the judge, bitllama-1M alone;
* unknown: share of words that two megabytes of such stories do not have;
* repeated: share of four-word runs that came before in the same answer;
* forwards: those of the auxiliary per token, with drafts (``speculation="on"``), prefill included;
* time: CPU time per token over main's alone, with drafts.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from common import SHARED, one_thread
from quality_common import Store

from langchain_ensemble.choose.stats import paired_bootstrap
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

PROMPTS = (
    "Once upon a time, there was a little girl named Lily. She",
    "Tom and his dog went to the park. They",
    "One day, a big bear was very hungry. He",
)
TOKENS = 300
FUSIONS = ("unite", "gac", "deepen", "average")
GATES = ("always", "threshold", "safe")
JUDGE = "bitllama-1M"
PAIRS = (
    ("demo stories", "stories260K"),
    ("stories260K", "demo stories"),
    ("stories260K", "babyllama-361"),
    ("babyllama-361", "stories260K"),
    ("demo stories", "demo facts"),
    ("demo facts", "demo stories"),
)
SHORT = 100
"""Tokens where babyllama-361, which spells every character and has 256 positions, is a member."""


def folder(name: str) -> Any:
    """Where a member is."""
    if name.startswith("demo "):
        return dict(demo_members())[name.removeprefix("demo ")]
    return str(SHARED / "models" / name)


def words(text: str) -> list[str]:
    """Its words in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def repeated(text: str, size: int = 4) -> tuple[int, int]:
    """Runs of words that came before in the same text, and how many there are."""
    said = words(text)
    runs = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
    return len(runs) - len(set(runs)), len(runs)


def answered(owner: Ensemble, tokens: int, **asked: Any) -> dict[str, Any]:
    """Answer every prompt alone; texts, counts, forwards, CPU seconds."""
    members = owner._ready().members
    pools = [member._lease.value.pool for member in members]  # type: ignore[attr-defined]
    request = RequestParams(max_tokens=tokens, speculation="on", weights="uniform", **asked)
    owner.generate(PROMPTS[:1], request.model_copy(update={"max_tokens": 8}))
    before = [pool.forwards for pool in pools]
    begun = time.process_time()
    answers = [owner.generate([prompt], request)[0][0] for prompt in PROMPTS]
    seconds = time.process_time() - begun
    return {
        "texts": [answer.text for answer in answers],
        "tokens": sum(answer.usage.steps for answer in answers),
        "fused": sum(answer.usage.fused_steps for answer in answers),
        "forwards": [pool.forwards - was for pool, was in zip(pools, before, strict=True)],
        "seconds": seconds,
    }


def judged(judge: Ensemble, known: set[str], texts: Sequence[str]) -> dict[str, Any]:
    """What is to be said of some answers."""
    scores = [judge.score(text, prompt) for text, prompt in zip(texts, PROMPTS, strict=True)]
    runs = [repeated(text) for text in texts]
    every = [words(text) for text in texts]
    return {
        "nats": [score.logprob for score in scores],
        "bytes": [score.num_bytes for score in scores],
        "unknown": [sum(word not in known for word in each) for each in every],
        "words": [len(each) for each in every],
        "repeated": [again for again, _ in runs],
        "runs": [count for _, count in runs],
    }


def measure(store: Store) -> None:
    """Fill the result file."""
    text = (SHARED / "text" / "tinystories" / "train_2M.txt").read_text("utf-8", errors="ignore")
    known = set(words(text))
    with Ensemble(EnsembleParams(members=[folder(JUDGE)])) as judge:
        for pair in PAIRS:
            members = {name.replace(" ", "-"): folder(name) for name in pair}
            tokens = SHORT if "babyllama-361" in pair else TOKENS
            for fusion in FUSIONS:
                with Ensemble(EnsembleParams(members=members, fusion=fusion)) as owner:
                    for gate in ("alone", *GATES):
                        key = {"pair": list(pair), "fusion": fusion, "gate": gate}
                        if gate == "alone" and fusion != FUSIONS[0]:
                            continue
                        if store.find(**key) is None:
                            asked: dict[str, Any] = {"gate": gate}
                            if gate == "alone":
                                asked = {"weights": (1.0, 0.0)}
                            told = answered(owner, tokens, **asked)
                            store.add({**key, **told, **judged(judge, known, told["texts"])})
                            sys.stdout.write(f"{line(store, store.rows[-1])}\n")
                            sys.stdout.flush()


def bits(row: dict[str, Any]) -> float:
    """Bits per byte of a row's answers under the judge."""
    return -float(sum(row["nats"])) / int(sum(row["bytes"])) / math.log(2)


def line(store: Store, row: dict[str, Any]) -> str:
    """One row of the table."""
    alone = store.find(pair=row["pair"], gate="alone")
    assert alone is not None  # measured first
    speed = row["seconds"] / row["tokens"] / (alone["seconds"] / alone["tokens"])
    unknown = sum(row["unknown"]) / max(1, sum(row["words"]))
    again = sum(row["repeated"]) / max(1, sum(row["runs"]))
    forwards = row["forwards"][1] / row["tokens"]
    named = "main alone" if row["gate"] == "alone" else f"{row['fusion']} | {row['gate']}"
    columns = [
        f"{row['tokens'] / len(PROMPTS):.0f}",
        f"{100 * row['fused'] / row['tokens']:.0f} %",
        f"{bits(row):.3f}",
        f"{100 * unknown:.1f} %",
        f"{100 * again:.0f} %",
        f"{forwards:.2f}",
        f"{speed:.1f}",
    ]
    pair = " + ".join(row["pair"])
    return f"| {pair} | {named}{' | ' if row['gate'] == 'alone' else ''} | {' | '.join(columns)} |"


def summary(store: Store) -> list[str]:
    """Each gate over all pairs, by fusion: bits against ungated and against main alone."""
    lines = []
    for fusion in FUSIONS:
        for gate in GATES:
            found = [
                [store.find(pair=list(p), fusion=fusion, gate=g) for g in (gate, "always")]
                + [store.find(pair=list(p), gate="alone")]
                for p in PAIRS
            ]
            whole = [[row for row in rows if row] for rows in found]
            whole = [rows for rows in whole if len(rows) == 3]
            if not whole:
                continue
            own, ungated, alone = (
                [bits_of(rows[k], n) for rows in whole for n in range(len(PROMPTS))]
                for k in range(3)
            )
            over = "" if gate == "always" else interval(own, ungated)
            lines.append(
                f"| {fusion} | {gate} | {share(whole, 'fused', 'tokens'):.0f} % | {over} | "
                f"{interval(own, alone)} | {share(whole, 'unknown', 'words'):.1f} % | "
                f"{share(whole, 'repeated', 'runs'):.0f} % | {auxiliary(whole):.2f} |"
            )
    return lines


def interval(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """A mean difference, answer by answer."""
    gap = paired_bootstrap(ours, theirs)
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def share(whole: Sequence[Sequence[dict[str, Any]]], part: str, of: str) -> float:
    """Percent of one count in another over all pairs."""
    sums = [[row[0][k] for row in whole] for k in (part, of)]
    flat = [float(sum(sum(v) if isinstance(v, list) else v for v in each)) for each in sums]
    return 100 * flat[0] / max(1, flat[1])


def auxiliary(whole: Sequence[Sequence[dict[str, Any]]]) -> float:
    """The auxiliary's forwards per token over all pairs."""
    forwards: int = sum(row[0]["forwards"][1] for row in whole)
    tokens: int = sum(row[0]["tokens"] for row in whole)
    return forwards / tokens


def in_order(store: Store) -> list[dict[str, Any]]:
    """The rows by pair, fusion and gate."""
    gates = ("alone", *GATES)
    return sorted(
        store.rows,
        key=lambda row: (
            PAIRS.index(tuple(row["pair"])),
            FUSIONS.index(row["fusion"]),
            gates.index(row["gate"]),
        ),
    )


def bits_of(row: dict[str, Any], n: int) -> float:
    """Bits per byte of one answer under the judge."""
    nats, size = float(row["nats"][n]), int(row["bytes"][n])
    return -nats / max(1, size) / math.log(2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    only_table = parser.parse_args().table
    one_thread()
    fixed = {"prompts": list(PROMPTS), "tokens": [TOKENS, SHORT], "judge": JUDGE}
    store = Store("gates", fixed)
    if not only_table:
        measure(store)
    head = "tokens | fused | bits | unknown | repeated | forwards | time |"
    sys.stdout.write(f"| members | fusion | gate | {head}\n|{'---|' * 10}\n")
    sys.stdout.write("".join(f"{line(store, row)}\n" for row in in_order(store)))
    head = "fused | bits over ungated | bits over main alone | unknown | repeated | forwards |"
    sys.stdout.write(f"\n| fusion | gate | {head}\n|{'---|' * 8}\n")
    sys.stdout.write("".join(f"{each}\n" for each in summary(store)))


if __name__ == "__main__":
    main()
