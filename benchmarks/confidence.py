"""Which single number tells wrong answers from right ones: what the raw confidence is made of.

Short questions with one right answer, greedy, ungated, uniform weights. Two pairs: the two demo
members on facts of countries (one of them knows all, the other nothing), and the specialists that
``specialists.py`` trained (each knows its half), on their held-out items.

Run: ``python benchmarks/confidence.py`` (reads the shared data; goes on where it was broken off).
Prints a table and writes ``benchmarks/results/confidence.json``; ``--table`` prints what is there.
A cell is the AUROC of "this answer is wrong": 0.5 is chance, 1 perfect.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from common import SHARED, one_thread
from demo_texts import QUESTIONS, countries
from quality_common import Store
from specialists import FOLDER, split

from langchain_ensemble.choose.stats import auroc
from langchain_ensemble.confidence import confidence_features, raw_confidence
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

COUNT = 400
AT_ONCE = 40
FUSIONS = ("average", "deepen", "gac", "unite")
SIGNALS = {
    "confidence": raw_confidence,
    "least sure token": lambda f: f["min_logprob"],
    "main alone": lambda f: f["mean_main_logprob"],
    "agreement": lambda f: -f["mean_disagreement"],
    "confidence × agreement": lambda f: raw_confidence(f) * (1 - f["mean_disagreement"]),
    "main not overruled": lambda f: -f["overruled"],
}

Items = Sequence[tuple[str, str]]
"""(prompt, answer), the answer as it must be contained."""


def facts() -> Items:
    """Questions about countries."""
    rng = random.Random(5)
    asked = [
        (f"Question: {rng.choice(QUESTIONS[kind][0]).format(c=country.name)}\nAnswer:", value)
        for country in countries(SHARED)
        for kind, value in country.facts.items()
    ]
    rng.shuffle(asked)
    return asked[:COUNT]


def said(wanted: str, text: str) -> bool:
    """Whether an answer says what is right: a number alone, a name anywhere."""
    return text.strip() == wanted if wanted.isdigit() else wanted.lower() in text.lower()


def measured(members: Mapping[str, Any] | Sequence[Any], fusion: str, items: Items) -> Any:
    """Answer all questions, and say how each signal ranks the answers.

    Args:
        members: The members, main first.
        fusion: The fusion.
        items: The questions.
    """
    request = RequestParams(max_tokens=40, stop=("\n",), logprobs=True, weights="uniform")
    right, features = [], []
    with Ensemble(EnsembleParams(members=members, fusion=fusion)) as owner:
        for at in range(0, len(items), AT_ONCE):
            some = items[at : at + AT_ONCE]
            for (_, wanted), (answer,) in zip(
                some, owner.generate([prompt for prompt, _ in some], request), strict=True
            ):
                right.append(said(wanted, answer.text))
                features.append(confidence_features(answer.tokens))
    wrong = [not one for one in right]
    ranked = {
        name: auroc([-signal(one) for one in features], wrong) for name, signal in SIGNALS.items()
    }
    return {"items": len(items), "wrong": sum(wrong), "auroc": ranked}


def table(store: Store) -> str:
    """Everything measured so far, as Markdown."""
    lines = [
        f"| members, main first | fusion | wrong | {' | '.join(SIGNALS)} |",
        "|---|---|---|" + "---|" * len(SIGNALS),
    ]
    for row in store.rows:
        values = [row["auroc"][name] for name in SIGNALS]
        cells = [f"**{x:.3f}**" if x == max(values) else f"{x:.3f}" for x in values]
        wrong = f"{row['wrong']} of {row['items']}"
        lines.append(f"| {row['pair']} | {row['fusion']} | {wrong} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    one_thread()
    store = Store("confidence", {"count": COUNT, "max_tokens": 40})
    pairs: dict[str, tuple[Any, Items]] = {"facts, stories (demo)": (demo_members(), facts())}
    if (FOLDER / "facts/config.json").exists() and (FOLDER / "sums/config.json").exists():
        asked = [(item.prompt, item.answer) for item in split()["test"]]
        for names in (("sums", "facts"), ("facts", "sums")):
            made = {name: str(FOLDER / name) for name in names}
            pairs[f"{', '.join(names)} (specialists)"] = (made, asked)
    for pair, (members, items) in pairs.items():
        for fusion in () if given.table else FUSIONS:
            if not store.find(pair=pair, fusion=fusion):
                store.add({"pair": pair, "fusion": fusion, **measured(members, fusion, items)})
                sys.stdout.write(f"{pair} {fusion}: {store.rows[-1]}\n")
    sys.stdout.write(table(store))


if __name__ == "__main__":
    main()
