"""What the kept answers of the specialists say: accuracy, vote, oracle, quality of confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from quality_common import points, said

from langchain_ensemble.choose.stats import Interval, auroc, risk_coverage

Answers = list[dict[str, Any]]
FITTED = (
    "mean_logprob",
    "min_logprob",
    "mean_main_logprob",
    "mean_disagreement",
    "max_disagreement",
)
RESAMPLED = 1000
FEWEST = 5
"""Wrong answers at least, to fit a map or to tell how well they are ranked."""
TASK = """
{count} held-out items, half sums, half facts of countries; exact match, greedy. Each specialist's
training rows are 98 % its own half, 2 % the other; the one model has the parameters of both and
{share:.0f} % of the rows that both had together (`specialists.py`). *Fused*: share of the steps in
which both had a say. *Learned*: `llm.calibrate` on {dev} other items.
"""
SURE = """
AUROC of "this answer is wrong" on the same items (0.5: chance, 1: perfect), interval over items;
risk: share of wrong answers among the surest half and the surest 80 %. *Map*: logistic, fitted to
{count} other items. Systems with fewer than 5 wrong answers are left out.
"""


def right(answers: Answers, items: Answers) -> list[float]:
    """1 where an answer is the item's."""
    return [float(a["text"] == i["answer"]) for a, i in zip(answers, items, strict=True)]


def percent(flags: Sequence[float]) -> str:
    """A share as text."""
    return f"{100 * sum(flags) / len(flags):.1f}"


def half(flags: Sequence[float], items: Answers, name: str) -> str:
    """The share within one half."""
    return percent([f for f, i in zip(flags, items, strict=True) if i["half"] == name])


def majority(texts: Sequence[str]) -> str:
    """The most frequent text, the earliest of equally frequent ones."""
    return Counter(texts).most_common(1)[0][0]


def vote(members: Sequence[Answers], best: int, surest: bool) -> Answers:
    """Answer vote of two: where they differ, the best member's or the surer one's answer."""
    found = []
    for some in zip(*members, strict=True):
        sure = max(some, key=lambda a: a["features"]["mean_logprob"])
        found.append(sure if surest else some[best])
    return found


def singles_of(held: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The models that were measured by themselves, by name."""
    return {row["system"]: row for row in held["rows"] if row["fusion"] == "alone"}


def best_member(held: dict[str, Any]) -> str:
    """The specialist with the most right answers."""
    single, items = singles_of(held), held["fixed"]["test"]
    return max(("sums", "facts"), key=lambda name: sum(right(single[name]["test"], items)))


def rows_of(single: dict[str, dict[str, Any]]) -> float:
    """Rows that the one model learned from, over those of the two specialists together."""
    count = {name: row["training"]["rows"] for name, row in single.items()}
    return float(count.get("both", 0) / (count["sums"] + count["facts"]))


def specialists_section(held: dict[str, Any]) -> list[str]:
    """Accuracy of everything, beside the best member."""
    items, single = held["fixed"]["test"], singles_of(held)
    best = best_member(held)
    base = right(single[best]["test"], items)
    flags = {name: right(row["test"], items) for name, row in single.items()}
    members = [single[name]["test"] for name in ("sums", "facts")]
    at = ("sums", "facts").index(best)
    both = [max(pair) for pair in zip(flags["sums"], flags["facts"], strict=True)]
    drawn = [{"text": majority(some)} for some in single[best]["samples"]]
    rows: list[tuple[str, list[float]]] = [
        (f"{name} ({single[name]['training']['parameters'] / 1e6:.2f}M parameters)", flags[name])
        for name in ("sums", "facts")
    ]
    rows += [
        ("oracle: any member right", both),
        ("answer vote, the best member where they differ", right(vote(members, at, False), items)),
        ("answer vote, the surer where they differ", right(vote(members, at, True), items)),
        (f"5-sample self-consistency of {best}", right(drawn, items)),
    ]
    if "both" in single:
        size = single["both"]["training"]["parameters"] / 1e6
        rows.append((f"one model of both halves ({size:.2f}M parameters)", flags["both"]))
    lines = [
        "## Specialists",
        "",
        *TASK.format(count=len(items), dev=len(held["fixed"]["dev"]), share=100 * rows_of(single))
        .strip()
        .splitlines(),
        "",
        "| | accuracy % | sums % | facts % | points over the best member |",
        "|---|---|---|---|---|",
    ]
    lines += [line(name, found, base, items) for name, found in rows]
    for row in sorted(held["rows"], key=lambda r: (r["system"], r["main"], r["fusion"], r["gate"])):
        if row["system"] in ("ensemble", "chat"):
            found = right(row["test"], items)
            gate = "" if row["gate"] == "always" else f", gate {row['gate']}"
            values = row["values"]
            how = row["weights"]
            if not isinstance(values, str):
                how += " " + "/".join(f"{values[n]:.2f}" for n in ("sums", "facts"))
            chat = "as a chat, " if row["system"] == "chat" else ""
            share = f", fused {100 * row['share']:.0f} %" if "share" in row else ""
            name = f"{chat}main {row['main']}, `{row['fusion']}`{gate}, {how}{share}"
            lines.append(line(name, found, base, items))
    return lines


def line(name: str, found: list[float], base: list[float], items: Answers) -> str:
    """One system's row."""
    over = points(found, base)
    told = f"**{said(over)}**" if over.excludes_zero else said(over)
    parts = [percent(found), half(found, items, "sums"), half(found, items, "facts")]
    return f"| {name} | {' | '.join(parts)} | {told} |"


def resampled(score: Callable[[list[int]], float], size: int) -> Interval:
    """A figure and its percentile interval over items."""
    generator = np.random.default_rng(0)
    draws = [score(generator.integers(0, size, size).tolist()) for _ in range(RESAMPLED)]
    kept = [d for d in draws if d == d]
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(score(list(range(size))), float(low), float(high))


def area(sure: Sequence[float], wrong: Sequence[bool]) -> Interval:
    """AUROC of "this answer is wrong" by how unsure one was."""

    def score(index: list[int]) -> float:
        flags = [wrong[n] for n in index]
        if all(flags) or not any(flags):
            return float("nan")
        return auroc([-sure[n] for n in index], flags)

    return resampled(score, len(sure))


def fitted(dev: Answers, dev_right: Sequence[float], test: Answers) -> list[float]:
    """A logistic map of the features that was fitted to the development set, on the test set."""
    table = np.array([[row["features"][name] for name in FITTED] for row in dev])
    middle, spread = table.mean(0), table.std(0) + 1e-6
    inputs = np.c_[(table - middle) / spread, np.ones(len(dev))]
    truth, coefficients = np.array(dev_right), np.zeros(len(FITTED) + 1)
    for _ in range(50):  # Newton, with a small ridge
        chance = 1 / (1 + np.exp(-inputs @ coefficients))
        slope = inputs.T @ (chance - truth) + 1e-1 * coefficients
        bend = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        coefficients -= np.linalg.solve(bend + 1e-1 * np.eye(len(coefficients)), slope)
    rows = np.array([[row["features"][name] for name in FITTED] for row in test])
    return [float(v) for v in np.c_[(rows - middle) / spread, np.ones(len(test))] @ coefficients]


def confidence_section(held: dict[str, Any]) -> list[str]:
    """How well each signal tells wrong answers, of the ensemble and of main alone."""
    items, single = held["fixed"]["test"], singles_of(held)
    lines = [
        "## Confidence",
        "",
        *SURE.format(count=len(held["fixed"]["dev"])).strip().splitlines(),
        "",
        "| answers of | wrong % | how sure | AUROC | risk at 50 % | risk at 80 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in shown(held):
        main = single[row["main"]]
        name = row["main"] + " alone"
        if row["system"] == "ensemble":
            name = f"`{row['fusion']}`, gate {row['gate']}, {row['weights']}, main {row['main']}"
        flags = right(row["test"], items)
        if flags.count(0.0) < FEWEST:
            continue  # nothing to rank
        for signal, sure in signals(row, main, held).items():
            wrong = [not flag for flag in flags]
            curve = risk_coverage(sure, wrong)
            risks = [min(curve, key=lambda p: abs(p[0] - at))[1] for at in (0.5, 0.8)]
            low = area(sure, wrong)
            lines.append(
                f"| {name} | {percent([float(w) for w in wrong])} | {signal} | "
                f"{low.mean:.3f} [{low.low:.3f}, {low.high:.3f}] | {100 * risks[0]:.1f} % | "
                f"{100 * risks[1]:.1f} % |"
            )
    return lines


def shown(held: dict[str, Any]) -> list[dict[str, Any]]:
    """The members alone, and each fusion with uniform weights, ungated, by the best main."""
    ours = [
        row
        for row in held["rows"]
        if row["system"] == "ensemble" and row["gate"] == "always" and row["weights"] == "uniform"
    ]
    return [singles_of(held)[name] for name in ("sums", "facts")] + ours


def signals(
    row: dict[str, Any], main: dict[str, Any], held: dict[str, Any]
) -> dict[str, list[float]]:
    """Every way to say how sure an answer is."""
    features = [answer["features"] for answer in row["test"]]
    agreed = [
        sum(text == answer["text"] for text in some) / len(some)
        for answer, some in zip(row["test"], main["samples"], strict=True)
    ]
    found = {"main's mean logprob": [f["mean_main_logprob"] for f in features]}
    found[f"{row['main']}'s 5 samples: share that say the same"] = agreed
    if row["system"] == "ensemble":
        found["ours: fused mean logprob (raw confidence)"] = [f["mean_logprob"] for f in features]
        found["ours: disagreement alone"] = [-f["mean_disagreement"] for f in features]
        dev = right(row["dev"], held["fixed"]["dev"])
        if dev.count(0.0) >= FEWEST:
            found["ours: map"] = fitted(row["dev"], dev, row["test"])
    return found
