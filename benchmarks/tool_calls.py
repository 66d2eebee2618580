"""Who calls the right tool: main alone, the ensemble with main calling, the ensemble together.

Run: ``python benchmarks/tool_calls.py [--count 200]`` (minutes on one CPU thread; reads the shared
data). Requests to a calculator, to a look-up of country facts and to tools that nobody has seen
before, with two tools on offer that do not fit; drawn from a seed of their own with the generators
that the demo members learned from. In half of them the answer begins with a sentence of text that
the ensemble decodes in the same turn: there the logits of all members are raised for that sentence
and main's for the opening of the call (of all members, where all write it), since the demo members
never learned to write both. In the other half nothing is raised, and whether to call is free.
Prints a table and writes ``benchmarks/results/tool_calls.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from demo_texts import Country, countries  # noqa: E402
from demo_tools import calculator, country_fact, random_tool  # noqa: E402
from demo_turns import Use  # noqa: E402

from langchain_ensemble import ChatEnsemble  # noqa: E402
from tests import actor  # noqa: E402

SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
SENTENCES = ("Let me look that up.", "I will use a tool.", "One moment, please.")
MAX_TOKENS = 150
WAYS = ("alone", "main", "fused")
"""Main alone; ``tools_by="main"``; ``tools_by="fused"``."""


@dataclass(frozen=True)
class Request:
    """One request: what is asked, the tools on offer, and the call that is right.

    Attributes:
        kind: Which generator it is from.
        use: The use of a tool.
        tools: On offer, its own among them.
        sentence: What the answer begins with; empty: nothing.
    """

    kind: str
    use: Use
    tools: tuple[dict[str, Any], ...]
    sentence: str


def requests(count: int, known: list[Country]) -> list[Request]:
    """Draw requests, always the same."""
    rng = random.Random("tool calls, held out")
    make: dict[str, Callable[[], Use]] = {
        "calculator": lambda: calculator(rng),
        "country_fact": lambda: country_fact(rng, known),
        "new tool": lambda: random_tool(rng),
    }
    found = []
    for number in range(count):
        kind = list(make)[number % 3]
        use = make[kind]()
        tools = {use.call[0]: use.tool}
        while len(tools) < 3:
            other = random_tool(rng)
            tools.setdefault(other.call[0], other.tool)
        offered = list(tools.values())
        rng.shuffle(offered)
        sentence = rng.choice(SENTENCES) if number % 2 else ""
        found.append(Request(kind, use, tuple(offered), sentence))
    return found


class Led:
    """Members say a sentence, and main opens a call, where a request has one."""

    def __init__(self) -> None:
        """Lead nowhere."""
        self.sentence = self.opening = ""

    def facts(self, _: str) -> str | None:
        """What main says."""
        return f"{self.sentence}\n{self.opening}" if self.sentence else None

    def stories(self, _: str) -> str | None:
        """What the other member says."""
        text = self.opening if self.opening.startswith("`") else ""  # a control token is main's
        return actor.Plain(f"{self.sentence}\n{text}") if self.sentence else None

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Let the engines that are built meanwhile have members that can be led."""
        from langchain_ensemble.adapter import engines

        stage, build = actor.Stage(), engines.build_engine
        stage.play(facts=self.facts, stories=self.stories)
        engines.build_engine = stage.build
        try:
            yield
        finally:
            engines.build_engine = build


@dataclass(frozen=True)
class Answer:
    """What was called.

    Attributes:
        calls: Name and arguments of every whole call.
        cut: Names of the calls that were cut at ``MAX_TOKENS``.
    """

    calls: tuple[tuple[str, str], ...]
    cut: tuple[str, ...]

    def right(self, request: Request) -> bool:
        """The one right call, arguments and all."""
        name, arguments = request.use.call
        return self.calls == ((name, _written(arguments)),)

    def right_tool(self, request: Request) -> bool:
        """The right tool, whatever the arguments."""
        names = (*(name for name, _ in self.calls), *self.cut)
        return names[:1] == request.use.call[:1]

    def called(self, _: Request) -> bool:
        """Any tool."""
        return bool(self.calls or self.cut)


def _written(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False)


def ask(chat: ChatEnsemble, request: Request, led: Led, opening: str) -> Answer:
    """What is called at a request."""
    led.sentence, led.opening = request.sentence, opening
    message = chat.bind_tools(request.tools).invoke(request.use.request)
    said = message.text.strip()
    if said != request.sentence and request.sentence:
        raise AssertionError(f"the sentence was {said!r}")
    made = tuple((call["name"], _written(call["args"])) for call in message.tool_calls)
    return Answer(made, tuple(str(call["name"]) for call in message.invalid_tool_calls))


def measure(
    found: list[Request], ways: tuple[str, ...] = WAYS, **settings: Any
) -> dict[str, list[Answer]]:
    """Ask everybody everything.

    Args:
        found: The requests.
        ways: Who is asked.
        **settings: Of the ensemble.

    Returns:
        Way → the answer to each request.
    """
    led = Led()
    with led.stage(), ChatEnsemble.demo(max_tokens=MAX_TOKENS, **settings) as chat:
        members = {
            "alone": (chat.solo("facts"), "<tool_call>"),
            "main": (chat, "<tool_call>"),
            "fused": (chat.model_copy(update={"tools_by": "fused"}), "```tool_call\n"),
        }
        return {way: [ask(members[way][0], r, led, members[way][1]) for r in found] for way in ways}


def table(found: list[Request], said: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """Rates by kind and by whether a sentence came first, and over all."""
    rows: list[dict[str, Any]] = []
    for kind in ("calculator", "country_fact", "new tool", "all"):
        for after in (False, True, None):
            chosen = [
                n
                for n, request in enumerate(found)
                if kind in (request.kind, "all") and after in (bool(request.sentence), None)
            ]
            where = {False: "at once", True: "after a sentence", None: "both"}[after]
            row: dict[str, Any] = {"kind": kind, "where": where, "count": len(chosen)}
            for what in ("right", "right_tool", "called"):
                row[what] = {
                    way: sum(getattr(said[way][n], what)(found[n]) for n in chosen) / len(chosen)
                    for way in said
                }
            row["as_alone"] = {
                way: sum(said[way][n] == said["alone"][n] for n in chosen) / len(chosen)
                for way in said
            }
            rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="requests")
    parser.add_argument("--fusion", default="unite")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = requests(given.count, countries(SHARED))
    rows = table(found, measure(found, fusion=given.fusion))
    sys.stdout.write("Right call / right tool / any call / the call of main alone\n\n")
    sys.stdout.write("| tool | where | requests | main alone | tools_by=main | fused |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for row in rows:
        cells = [
            " / ".join(
                f"{row[what][w]:.2f}" for what in ("right", "right_tool", "called", "as_alone")
            )
            for w in WAYS
        ]
        where = f"| {row['kind']} | {row['where']} | {row['count']} | "
        sys.stdout.write(f"{where}{' | '.join(cells)} |\n")
    out = ROOT / "benchmarks" / "results" / "tool_calls.json"
    whole = {"fusion": given.fusion, "count": given.count, "rows": rows}
    out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
