"""What views and roles change, on small real members.

    python benchmarks/views.py            # both tables, about fifteen minutes on one thread
    python benchmarks/views.py --questions 60 --texts 40

*Conflicts*: the demo's ``facts`` member, which learned the world's capitals, languages and highest
points, is asked for one while it reads a passage that says something else (another country's):
does the answer follow the passage? Once the passage stands there bare, and once after words that
the member was trained with ("Answer from the context."). Two views of one model, one of which
reads the passage, under ``context_aware`` with several strengths; beside them each view alone and
the plain mean of both. Passages are in the system turn, where ``contexts=`` puts them. Greedy.

*Contrast*: stories260K as the expert and bitllama-1M, which has its vocabulary, as the amateur, on
TinyStories: bits per byte where nothing is cut off (``alpha=0``), and greedy continuations with the
authors' ``alpha=0.1``: the share of four-word runs that are new, and how likely a third model
(babyllama-361) finds them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import SHARED, Row, one_thread, save
from quality_common import pieces, points, said, saving

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from demo_texts import QUESTIONS, Country, countries

from langchain_ensemble import ChatEnsemble, EnsembleLLM
from langchain_ensemble.demo import members

KINDS = ("capital", "peak", "language")
INTRODUCTION = "Answer from the context.\n\nContext:\n"
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
BETAS = (0.1, 0.25, 0.5, 1.0)
STORIES = {"expert": SHARED / "models/stories260K", "amateur": SHARED / "models/bitllama-1M"}


def conflicts(count: int, known: Sequence[Country]) -> list[dict[str, str]]:
    """Questions on real countries, with passages that answer them wrongly.

    Args:
        count: How many.
        known: The countries.

    Returns:
        Question, passage, what the passage says, what is true.
    """
    rng, found = random.Random(0), []
    while len(found) < count:
        country, other = rng.sample(list(known), 2)
        kind = rng.choice(KINDS)
        true, swapped = country.facts.get(kind), other.facts.get(kind)
        if not true or not swapped or true in swapped or swapped in true:
            continue
        asked, answers = QUESTIONS[kind]
        lines = [answers[0].format(c=country.name, v=swapped)]
        for more in rng.sample(sorted(set(country.facts) - {kind}), k=2):
            lines.append(QUESTIONS[more][1][0].format(c=country.name, v=country.facts[more]))
        rng.shuffle(lines)
        found.append(
            {
                "question": asked[0].format(c=country.name),
                "passage": " ".join(lines),
                "told": swapped,
                "true": true,
            }
        )
    return found


def systems() -> dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]]:
    """Name → fusion, members, and those of them that read the passage."""
    both, reader = ("reader", "bare"), ("reader",)
    found: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
        "without the passage": ("average", reader, ()),
        "with the passage": ("average", reader, reader),
        "average of both": ("average", both, reader),
    }
    for strength in STRENGTHS:
        roles = {"with_context": "reader", "without": "bare", "strength": strength}
        fusion = {"name": "context_aware", **roles}
        found[f"context_aware, {strength:g}"] = (fusion, both, reader)
    return found


def follow(asked: Sequence[dict[str, str]], before: str, title: str) -> tuple[list[Row], list[str]]:
    """The table of conflicts.

    Args:
        asked: The questions.
        before: What stands before a passage.
        title: What that is called.

    Returns:
        Figures, and the table's lines.
    """
    facts, hits = members()["facts"], {}
    for name, (fusion, who, readers) in systems().items():
        texts = []
        with ChatEnsemble(members=dict.fromkeys(who, facts), fusion=fusion, max_tokens=40) as chat:
            for one in asked:
                told = dict.fromkeys(readers, before + one["passage"])
                texts.append(chat.invoke(one["question"], contexts=told).text)
        hits[name] = [
            [int(one[what] in text) for one, text in zip(asked, texts, strict=True)]
            for what in ("told", "true")
        ]
        print(title, name, *map(sum, hits[name]), flush=True)
    rows = []
    lines = [
        f"| {title} | as the passage says | more than the reader alone (points) | from memory |"
    ]
    lines.append("|---|---|---|---|")
    base = hits["with the passage"][0]
    for name, (told, true) in hits.items():
        gain = points(told, base)
        more = "" if told is base else said(gain)
        share, memory = (100 * sum(hit) / len(asked) for hit in (told, true))
        lines.append(f"| {name} | {share:.1f} % | {more} | {memory:.1f} % |")
        detail = {"memory": memory, "gain": list(gain)}
        rows.append(Row(f"as the passage says, {title}", name, share, unit="%", more=detail))
    return rows, lines


def contrast(count: int) -> tuple[list[Row], list[str]]:
    """The table of contrast."""
    texts = pieces("tinystories/heldout_dev.txt", count)
    sizes = [len(text.encode()) for text in texts]
    judge = EnsembleLLM(members={"judge": str(SHARED / "models/babyllama-361")}, fusion="average")
    folders = {name: str(folder) for name, folder in STORIES.items()}
    systems: dict[str, Any] = {"expert alone": None, "amateur alone": None}
    for beta in BETAS:
        systems[f"contrastive, beta {beta:g}"] = beta
    rows, lines = [], ["| | bits per byte, alpha 0 | fewer than the expert (%) |"]
    lines[0] += " new four-word runs | judge's bits per byte |"
    lines.append("|---|---|---|---|---|")
    base: list[float] = []
    for name, beta in systems.items():
        if beta is None:
            alone = {name.split()[0]: folders[name.split()[0]]}
            free = EnsembleLLM(members=alone, fusion="average", max_tokens=48)
            cut = free
        else:
            roles = {"name": "contrastive", "expert": "expert", "amateur": "amateur", "beta": beta}
            free = EnsembleLLM(members=folders, fusion={**roles, "alpha": 0.0})
            cut = EnsembleLLM(members=folders, fusion=roles, max_tokens=48)
        with free, cut, judge:
            nats = [-free.score(text).logprob for text in texts]
            begun = [" ".join(text.split()[:12]) for text in texts]
            told = cut.batch(begun)
            seen = [judge.score(t, b) for t, b in zip(told, begun, strict=True) if t]
        base = base or nats
        gain = saving(nats, base, sizes)
        bits = sum(nats) / sum(sizes) / 0.6931471805599453
        fresh = sum(map(new_runs, told)) / len(told)
        judged = -sum(s.logprob for s in seen) / sum(s.num_bytes for s in seen) / 0.6931471805599453
        more = "" if nats is base else said(gain)
        lines.append(f"| {name} | {bits:.4f} | {more} | {100 * fresh:.1f} % | {judged:.3f} |")
        print(lines[-1], flush=True)
        detail = {"gain": list(gain), "fresh": fresh, "judge": judged}
        rows.append(Row("bits per byte", name, bits, more=detail))
    return rows, lines


def new_runs(text: str) -> float:
    """Share of a text's runs of four words that are not there twice; 1 where there is none."""
    words = text.split()
    runs = [tuple(words[n : n + 4]) for n in range(len(words) - 3)]
    return len(set(runs)) / len(runs) if runs else 1.0


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--texts", type=int, default=150)
    asked = parser.parse_args()
    one_thread()
    known = [country for country in countries(SHARED) if len(country.facts) > 4]
    questions = conflicts(asked.questions, known)
    measured = {
        "bare passage": follow(questions, "", "bare passage"),
        "introduced": follow(questions, INTRODUCTION, "introduced"),
        "contrast": contrast(asked.texts),
    }
    rows = [row for found, _ in measured.values() for row in found]
    tables = {name: lines for name, (_, lines) in measured.items()}
    save("views", rows, tables=tables)
    for lines in tables.values():
        print("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
