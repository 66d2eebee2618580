"""Two specialists on a mixed held-out set: members, oracle, vote, one big model, the ensemble.

Run: ``python benchmarks/quality_specialists.py [--only WORD ...]`` after ``specialists.py`` (one
thread). Writes ``benchmarks/results/quality_specialists.json`` row by row and goes on where it was
broken off. Every answer is kept with what :func:`confidence_features` says of it, so that voting,
intervals and the quality of confidence are counted afterwards, without a model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from quality_answers import FITTED
from quality_bits import FUSIONS, SHIPPED, learned
from quality_common import GATES, Store
from specialists import FOLDER, NAMES, Item, split

from langchain_ensemble import ChatEnsemble, EnsembleLLM
from langchain_ensemble.confidence import confidence_features
from langchain_ensemble.decoding.records import Answer
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import EnsembleParams, RequestParams

MEMBERS = NAMES[:2]
SAMPLES, TEMPERATURE, AT_ONCE = 5, 0.7, 40


def is_right(answer: str, item: Item) -> bool:
    """Exact match of the first line, without the spaces around it.

    Args:
        answer: What was said.
        item: What was asked.

    Returns:
        Whether it is the answer.
    """
    return answer.strip().split("\n")[0].strip() == item.answer


def row_of(answer: Answer) -> dict[str, Any]:
    """What is kept of an answer.

    Args:
        answer: With log-probabilities.

    Returns:
        Text and features, rounded.
    """
    features = confidence_features(answer.tokens)
    return {
        "text": answer.text.strip().split("\n")[0].strip(),
        "features": {name: round(features[name], 3) for name in FITTED},
        "fused": answer.usage.fused_steps,
        "steps": answer.usage.steps,
    }


def answers(owner: Ensemble, items: Sequence[Item], **how: Any) -> list[list[dict[str, Any]]]:
    """Answer some questions.

    Args:
        owner: The ensemble.
        items: The questions.
        how: What of the request differs from greedy.

    Returns:
        [item][n] answers.
    """
    request = RequestParams(max_tokens=40, stop=("\n",), logprobs=True, **how)
    found: list[list[dict[str, Any]]] = []
    for at in range(0, len(items), AT_ONCE):
        prompts = [item.prompt for item in items[at : at + AT_ONCE]]
        found += [[row_of(one) for one in some] for some in owner.generate(prompts, request)]
    return found


def slim(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the file keeps it: features only where all positions are fused, uniformly.

    Args:
        row: With whole answers.

    Returns:
        The row with ``share``, the share of fused steps.
    """
    test = row["test"]
    if "steps" in test[0]:
        row["share"] = round(sum(a["fused"] for a in test) / sum(a["steps"] for a in test), 4)
    whole = (row["gate"], row["weights"]) == ("always", "uniform")
    names = ("text", "features") if whole else ("text",)
    for part in ("test", "dev") if whole else ("test",):
        if part in row:
            row[part] = [{k: answer[k] for k in names if k in answer} for answer in row[part]]
    return row if whole else {k: v for k, v in row.items() if k != "dev"}


def singles(folder: Path, items: dict[str, list[Item]], store: Store) -> None:
    """Each model by itself: greedy, and five samples for self-consistency.

    Args:
        folder: Where the models lie.
        items: Held-out items, and those that calibration is fitted on.
        store: Where rows go.
    """
    for name in NAMES:
        key = {"system": name, "fusion": "alone", "gate": "always", "weights": "uniform"}
        made = (folder / name / "training.json").exists()
        if store.find(**key) or not made:
            continue
        with Ensemble(EnsembleParams(members=[str(folder / name)])) as owner:
            greedy = {part: answers(owner, items[part]) for part in ("test", "dev")}
            how = {"n": SAMPLES, "temperature": TEMPERATURE, "seed": 1}
            drawn = answers(owner, items["test"], **how)
        flat = {part: [one[0] for one in got] for part, got in greedy.items()}
        samples = [[one["text"] for one in some] for some in drawn]
        training = json.loads((folder / name / "training.json").read_text())
        store.add(slim({**key, "main": name, **flat, "samples": samples, "training": training}))
        right = sum(
            is_right(a["text"], i) for a, i in zip(flat["test"], items["test"], strict=True)
        )
        sys.stdout.write(f"{name} alone: {right} of {len(items['test'])}\n")
        sys.stdout.flush()


def fused(
    folder: Path, main: str, label: str, wanted: Sequence[str], data: tuple[Any, Store]
) -> None:
    """One main and fusion: every gate and every weights.

    Args:
        folder: Where the models lie.
        main: Whose vocabulary the answer is read in.
        label: One of :data:`FUSIONS`.
        wanted: Names of gates.
        data: Items and where rows go.
    """
    items, store = data
    base = {"system": "ensemble", "main": main, "fusion": label}
    ways = ("uniform", "prompt", "learned")
    todo = [
        {"gate": gate, "weights": way}
        for gate in wanted
        for way in ways
        if not store.find(**base, gate=gate, weights=way)
    ]
    if not todo:
        return
    members = [{"name": name, "model": str(folder / name)} for name in MEMBERS]
    llm = EnsembleLLM(members=members, main=main, fusion=FUSIONS[label])
    values: dict[str, Any] = {way: way for way in ways}
    pairs = [(item.prompt, f" {item.answer}") for item in items["dev"]]
    random.Random(1).shuffle(pairs)  # every second one teaches: not one half of the task only
    values["learned"] = learned(llm, pairs)
    with llm.load().engine as owner:
        for key in todo:
            started = time.process_time()
            how = {"gate": GATES[key["gate"]], "weights": values[key["weights"]]}
            got = {p: [a[0] for a in answers(owner, items[p], **how)] for p in ("test", "dev")}
            store.add(slim({**base, **key, "values": values[key["weights"]], **got}))
            said = zip(got["test"], items["test"], strict=True)
            right = sum(is_right(answer["text"], item) for answer, item in said)
            spent = time.process_time() - started
            sys.stdout.write(f"{base} {key} {values[key['weights']]}: {right}, {spent:.0f} s\n")
            sys.stdout.flush()


def chats(folder: Path, main: str, label: str, data: tuple[Any, Store]) -> None:
    """The same questions as messages to ``ChatEnsemble``, uniform weights, ungated.

    Args:
        folder: Where the models lie.
        main: Whose vocabulary the answer is read in.
        label: One of :data:`FUSIONS`.
        data: Items and where rows go.
    """
    items, store = data
    key = {"system": "chat", "main": main, "fusion": label, "gate": "always", "weights": "uniform"}
    if store.find(**key):
        return
    members = [{"name": name, "model": str(folder / name)} for name in MEMBERS]
    fusion = FUSIONS[label]
    how = {"max_tokens": 40, "stop": ["\n"], "weights": "uniform"}
    chat = ChatEnsemble(members=members, main=main, fusion=fusion, **how)
    replies = chat.batch([item.question for item in items["test"]])
    chat.unload()
    store.add({**key, "values": "uniform", "test": [{"text": r.text.strip()} for r in replies]})


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--gates", nargs="*", default=list(GATES), choices=list(GATES))
    parser.add_argument("--only", nargs="*", default=[], help="words of a fusion's or main's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    items = split()
    asked = [{"prompt": i.prompt, "answer": i.answer, "half": i.half} for i in items["test"]]
    dev = [{"prompt": i.prompt, "answer": i.answer, "half": i.half} for i in items["dev"]]
    store = Store("quality_specialists", {"test": asked, "dev": dev})
    singles(given.folder, items, store)
    for main_name in MEMBERS:
        for label in FUSIONS:
            wanted = all(word in f"{label} {main_name}" for word in given.only)
            if wanted and label.split()[0] in SHIPPED:
                fused(given.folder, main_name, label, given.gates, (items, store))
                chats(given.folder, main_name, label, (items, store))


if __name__ == "__main__":
    main()
