"""Write ``benchmarks/quality.md`` from the result files: ``python benchmarks/quality_table.py``.

No model is loaded; every interval is counted from the kept per-piece and per-item figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from quality_answers import confidence_section, specialists_section
from quality_common import GATES, RESULTS, said, saving

from langchain_ensemble.choose.stats import Interval

PAGE = Path(__file__).parent / "quality.md"
RECIPE = Path(__file__).parent / "quality_recipe.md"
BARS = (  # members, fusion, weights, percent
    (("stories260K", "babyllama-361"), "bytes", "uniform", 3.0),
    (("stories260K", "bitllama-1M"), "average geometric", "uniform", 1.0),
)
SHIPPED = "average arithmetic"
"""The default fusion; its gate is always open, its weights follow the answer."""
WAYS = ("uniform", "learned", "online")
Rows = list[dict[str, Any]]

INTRODUCTION = """
Made by `python benchmarks/quality.py`; every figure comes from a file in `results/`. Gains are
percent of bits, or percentage points of accuracy, with a paired 95 % bootstrap interval in
brackets; **bold** where it excludes zero. Rows where the ensemble loses are kept.
"""
RULES = """
Percent of bits saved against the better member under the same fusion, on its own texts and members;
what the rules are: [docs/weights.md](../docs/weights.md), `python benchmarks/weights.py`.
""".strip()
HOW = """
`score` of {pieces} pieces ({size} bytes) of at most 230 bytes, shorter than the smallest context,
of held-out TinyStories. Baseline: the better member *under the same fusion with all weight on it*;
intervals over pieces. *Learned* weights: `llm.calibrate` on {other} pieces of other text, for the
same fusion ungated; *online*: by how well each member said the text so far, rate and memory chosen
on that other text. Bits of fusions other than `bytes` are those of one spelling, so only rows of
one fusion and one main compare; gains do.
"""


def load(name: str) -> dict[str, Any]:
    """A result file, or an empty one.

    Args:
        name: Without ``.json``.

    Returns:
        ``fixed`` and ``rows``.
    """
    path = RESULTS / f"{name}.json"
    empty: dict[str, Any] = {"fixed": {}, "rows": []}
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else empty


def bits(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """Bits per byte of all pieces."""
    return sum(nats) / sum(sizes) / math.log(2)


def baseline(rows: Rows) -> dict[str, Any]:
    """The better member under the same fusion: the row with all weight on it."""
    single = [row for row in rows if row["weights"].startswith("all on ")]
    return min(single, key=lambda row: sum(row["nats"]))


def groups(rows: Rows) -> list[Rows]:
    """Rows of the same members, main and fusion together, in the file's order."""
    made: dict[str, Rows] = {}
    for row in rows:
        if row["fusion"] != "alone":
            key = json.dumps([row["members"], row["main"], row["fusion"]])
            made.setdefault(key, []).append(row)
    return list(made.values())


def gain(rows: Rows, weights: str, sizes: Sequence[int], gate: str = "always") -> Interval | None:
    """Percent fewer bits than the better member under the same fusion."""
    found = [row for row in rows if (row["weights"], row["gate"]) == (weights, gate)]
    return saving(found[0]["nats"], baseline(rows)["nats"], sizes) if found else None


def told(interval: Interval | None) -> str:
    """An interval as a cell; bold where it excludes zero."""
    if interval is None:
        return ""
    return f"**{said(interval)}**" if interval.excludes_zero else said(interval)


def bits_table(held: dict[str, Any]) -> list[str]:
    """Every row of bits per byte."""
    sizes, rows = held["fixed"]["sizes"], held["rows"]
    alone = {r["members"][0]: r for r in rows if r["fusion"] == "alone"}
    lines = ["| member alone, along its own ids | bits per byte |", "|---|---|"]
    lines += [f"| {name} | {bits(row['nats'], sizes):.4f} |" for name, row in alone.items()]
    lines += [
        "",
        "| members (main first) | fusion | each with all weight | gate | uniform | gain % "
        "| learned (weights) | gain % | online | gain % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups(rows):
        names = sorted(group[0]["members"], key=lambda n: n != group[0]["main"])
        by = {(row["gate"], row["weights"]): row for row in group}
        single = (f"{bits(by['always', f'all on {n}']['nats'], sizes):.4f}" for n in names)
        shown = f"{' + '.join(names)} | {group[0]['fusion']} | {' / '.join(single)}"
        for gate in dict.fromkeys(row["gate"] for row in group):
            cells = []
            for way in WAYS:
                row = by.get((gate, way))
                if row is None:
                    cells += ["", ""]
                    continue
                value = f"{bits(row['nats'], sizes):.4f}"
                if way == "learned":
                    value += " (" + ", ".join(f"{row['values'][n]:.2f}" for n in names) + ")"
                cells += [value, told(gain(group, way, sizes, gate))]
            lines.append(f"| {shown} | {gate} | {' | '.join(cells)} |")
    return lines


def better_main(group: Rows, alone: dict[str, float]) -> bool:
    """Whether main is the best of the members by itself."""
    return min(group[0]["members"], key=lambda name: alone[name]) == group[0]["main"]


def default_table(held: dict[str, Any]) -> list[str]:
    """Each fusion and weights over all sets of members: how often better, how often worse."""
    sizes, rows = held["fixed"]["sizes"], held["rows"]
    alone = {r["members"][0]: sum(r["nats"]) for r in rows if r["fusion"] == "alone"}
    lines = [
        "| fusion | gate | weights | main | sets | better | worse | least gain % | mean gain % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    kinds: dict[str, list[Rows]] = {}
    for group in groups(rows):
        kinds.setdefault(group[0]["fusion"], []).append(group)
    for fusion, gate, way in product(kinds, GATES, WAYS):
        for who in ("the best member", "any member"):
            chosen = [g for g in kinds[fusion] if who == "any member" or better_main(g, alone)]
            found = [i for g in chosen if (i := gain(g, way, sizes, gate)) is not None]
            if found:
                better = sum(i.low > 0 for i in found)
                worse = sum(i.high < 0 for i in found)
                least, mean = min(i.mean for i in found), sum(i.mean for i in found)
                lines.append(
                    f"| {fusion} | {gate} | {way} | {who} | {len(found)} | {better} | {worse} |"
                    f" {least:+.1f} | {mean / len(found):+.1f} |"
                )
    return lines


def bars_table(held: dict[str, Any]) -> list[str]:
    """The bars of bits per byte."""
    sizes = held["fixed"]["sizes"]
    lines = ["| bar | measured | holds |", "|---|---|---|"]
    for members, fusion, way, least in BARS:
        found = [
            (g, interval)
            for g in groups(held["rows"])
            if set(g[0]["members"]) == set(members)
            and g[0]["fusion"].startswith(fusion)
            and (interval := gain(g, way, sizes)) is not None
        ]
        for group, interval in found:
            holds = "yes" if interval.mean >= least else "**no**"
            lines.append(
                f"| {' + '.join(members)}, `{group[0]['fusion']}`, {way}, main "
                f"{group[0]['main']}: >= {least:.0f} % | {said(interval)} % | {holds} |"
            )
        if not found:
            lines.append(f"| {' + '.join(members)}, `{fusion}`, {way} | not measured | **no** |")
    return [*lines, *learned_bar(held), *default_bar(held)]


def learned_bar(held: dict[str, Any]) -> list[str]:
    """Whether learned weights gain more than uniform ones on one vocabulary."""
    members, fusion, _, _ = BARS[-1]
    lines = []
    for group in groups(held["rows"]):
        if (set(group[0]["members"]), group[0]["fusion"]) != (set(members), fusion):
            continue
        even, taught = (gain(group, way, held["fixed"]["sizes"]) for way in ("uniform", "learned"))
        if even is not None and taught is not None:
            holds = "yes" if taught.mean > even.mean else "**no**"
            lines.append(
                f"| the same, main {group[0]['main']}: learned weights more than uniform ones "
                f"| {said(taught)} % beside {said(even)} % | {holds} |"
            )
    return lines


def default_bar(held: dict[str, Any]) -> list[str]:
    """Whether the default is below the better member anywhere, beyond its interval."""
    chosen = [group for group in groups(held["rows"]) if group[0]["fusion"] == SHIPPED]
    found = [(g, i) for g in chosen if (i := gain(g, "online", held["fixed"]["sizes"]))]
    worse = [
        f"{' + '.join(g[0]['members'])}, main {g[0]['main']} {said(i)} %"
        for g, i in found
        if i.high < 0
    ]
    told_so = "; ".join(worse) or "nowhere"
    return [
        f"| the default (`{SHIPPED}`, always, online) never worse than the better member, in "
        f"{len(found)} sets of members and mains | worse: {told_so} | "
        f"{'**no**' if worse else 'yes'} |"
    ]


def gates_section() -> list[str]:
    """The tables of ``gates.py``, where it has been run."""
    held = load("gates")
    if not held["rows"]:
        return ["Not measured: `python benchmarks/gates.py`."]
    import gates

    given, sys.argv = sys.argv, ["gates.py", "--table"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as told_by_gates:
            gates.main()
    finally:
        sys.argv = given
    return [
        "Long greedy answers of story tellers with different tokenizers, judged by a third model.",
        "*bits*: of the answer under the judge; *unknown*: words that no story has; *repeated*:",
        "four-word runs that came before; *forwards*: the auxiliary's, a token. More:",
        "[docs/gates.md](../docs/gates.md).",
        "",
        *told_by_gates.getvalue().strip().splitlines(),
    ]


def prompted_section() -> list[str]:
    """Weights by the prompt, where there is one."""
    held = load("quality_prompted")
    lines = [
        "| members (main first) | fusion | each with all weight | uniform | gain % | by prompt |"
        " gain % |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in groups(held["rows"]):
        names, by = group[0]["members"], {row["weights"]: row["nats"] for row in group}
        sizes = held["fixed"]["sizes"]
        single = " / ".join(f"{bits(by[f'all on {name}'], sizes):.4f}" for name in names)
        cells = [
            cell
            for way in ("uniform", "prompt")
            for cell in (f"{bits(by[way], sizes):.4f}", told(gain(group, way, sizes)))
        ]
        lines.append(
            f"| {' + '.join(names)} | {group[0]['fusion']} | {single} | {' | '.join(cells)} |"
        )
    return lines if held["rows"] else ["Not measured: `python benchmarks/quality_prompted.py`."]


def rules_section() -> list[str]:
    """Rules for weights, those that depend on the context among them, from ``weights.json``."""
    path = RESULTS / "weights.json"
    held = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = [row for part in held.values() for row in part if "members" in row]
    if not rows:
        return ["Not measured: `python benchmarks/weights.py`."]
    sets = list(dict.fromkeys((row["members"], row["fusion"]) for row in rows))
    found = {(row["members"], row["fusion"], row["rule"]): row["saved"] for row in rows}
    lines = [
        "| rule | " + " | ".join(f"{members}, {fusion}" for members, fusion in sets) + " |",
        "|---|" + "---|" * len(sets),
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = []
        for one in sets:
            saved = found.get((*one, rule))
            cells.append(told(Interval(*(100 * value for value in saved))) if saved else "")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return lines


def page() -> str:
    """The whole page."""
    held, answers = load("quality_bits"), load("quality_specialists")
    parts = [
        "# Quality: is it worth it?",
        "",
        *INTRODUCTION.strip().splitlines(),
        "",
    ]
    if held["rows"]:
        fixed = held["fixed"]
        parts += [
            "## Small real models",
            "",
            *HOW.format(
                pieces=fixed["pieces"], size=sum(fixed["sizes"]), other=fixed["other_pieces"]
            )
            .strip()
            .splitlines(),
            "",
            *bars_table(held),
            "",
            "### Which default is never worse?",
            "",
            "*better*, *worse*: sets of members whose interval lies above, below zero.",
            "",
            *default_table(held),
            "",
            "### Weights by the prompt",
            "",
            "The same pieces, of which the first 100 bytes are the prompt.",
            "",
            *prompted_section(),
            "",
            "### All rows",
            "",
            *bits_table(held),
            "",
        ]
    if answers["rows"]:
        parts += [*specialists_section(answers), "", *confidence_section(answers), ""]
    parts += ["## Rules for weights", "", RULES, "", *rules_section(), ""]
    parts += ["## Ungated hurts, gated does not", "", *gates_section(), ""]
    parts.append(RECIPE.read_text("utf-8") if RECIPE.exists() else "")
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")
    print(PAGE.name)


if __name__ == "__main__":
    main()
