"""What each demo member can do in a chat: greedy answers, its own template, exact match.

Run: ``python tools/measure_demo_members.py [--count 100]`` (minutes on one CPU thread; reads the
shared data). Every request is drawn with names and values that training has not seen, except the
questions on real countries, which are to be recalled. Free generation by one member alone: no
grammar, no fusion. Prints a table and writes ``benchmarks/results/demo_chat.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from demo_chats import as_json, country_chat, echo, memory, passage, small_talk
from demo_mix import render
from demo_texts import Country, countries
from demo_tools import calculator, country_fact, one_call, random_tool, two_calls, two_numbers
from demo_turns import Chat, Use, calls, result, says, user
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LANGCHAIN_ENSEMBLE_SHARED") or ROOT.parent / "shared")
Make = Callable[[random.Random], Chat]
NAMED = '", "arguments"'  # comes after the name of the first tool that is called


def called(use: Use, others: list[Use]) -> Chat:
    """A request that ends in the call of one of the tools."""
    tools = {each.call[0]: each.tool for each in [*others, use]}
    return Chat([user(use.request), calls(use.call)], list(tools.values()))


def told(use: Use) -> Chat:
    """A request, its call and its result, which end in an answer."""
    turns = [user(use.request), calls(use.call), result(use.result), says(use.answer)]
    return Chat(turns, [use.tool])


def in_script(rng: random.Random) -> Chat:
    """A request whose first string is not ASCII."""
    while True:
        use = random_tool(rng)
        if any(isinstance(v, str) and not v.isascii() for v in use.arguments.values()):
            return called(use, [])


def tasks(known: list[Country]) -> dict[str, Make]:
    """Name of a row of the table and how a case of it is drawn."""
    return {
        "country, from memory": lambda rng: country_chat(rng, known),
        "small talk, with or without tools": lambda rng: small_talk(rng, known),
        "what the user said before": lambda rng: memory(rng, known),
        "repeat": echo,
        "answer from a passage": lambda rng: passage(rng, known),
        "short JSON": lambda rng: as_json(rng, known),
        "call: calculator": lambda rng: called(calculator(rng), []),
        "call: sum of two numbers": lambda rng: called(two_numbers(rng), []),
        "call: country_fact": lambda rng: called(country_fact(rng, known), []),
        "call: new tool": lambda rng: called(random_tool(rng), []),
        "call: new tool of three": lambda rng: called(
            random_tool(rng), [random_tool(rng), random_tool(rng)]
        ),
        "call: new tool, not ASCII": in_script,
        "call: two at once": lambda rng: _upto_call(two_calls(rng, known)),
        "call: any, with system turns": lambda rng: _upto_call(one_call(rng, known)),
        "answer from a result": lambda rng: told(random_tool(rng)),
    }


def _upto_call(chat: Chat) -> Chat:
    at = next(i for i, message in enumerate(chat.messages) if message.get("tool_calls"))
    return Chat(chat.messages[: at + 1], chat.tools)


def right_ids(model: Any, tokenizer: Any, chat: Chat) -> tuple[list[int], int]:
    """The wanted turn with its end, and how many of its ids greedy decoding gets right in a row.

    One pass over the wanted text tells: greedy decoding writes it exactly if every id is the most
    likely one after the ids before it.
    """
    count = len(chat.messages)
    prompt = tokenizer(render(tokenizer, chat, count - 1, True), add_special_tokens=False)
    text = render(tokenizer, chat, count, False).rstrip("\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(prompt["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
    same = logits.argmax(-1)[start - 1 :] == torch.tensor(ids[start:])
    return ids[start:], int(same.long().cumprod(0).sum())


def measure(folder: Path, make: Make, count: int) -> dict[str, float]:
    """Shares of turns: right to the end, right up to a call's arguments, begun right."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng, exact, named, begun = random.Random("held out"), 0, 0, 0
    for _ in range(count):
        wanted, right = right_ids(model, tokenizer, make(rng))
        exact += right == len(wanted)
        begun += right > 0
        named += NAMED in tokenizer.decode(wanted[:right])
    return {"exact": exact / count, "named": named / count, "begun": begun / count}


def main() -> None:
    """Measure both members and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="cases a row")
    parser.add_argument("--folder", type=Path, default=ROOT / "langchain_ensemble/demo")
    parser.add_argument("--members", nargs="*", default=["facts", "stories"])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'exact | tool name | begun right':40}", *(f"{m:>20}" for m in given.members))
    for task, make in tasks(countries(SHARED)).items():
        if given.only not in task:
            continue
        found[task] = {m: measure(given.folder / m, make, given.count) for m in given.members}
        cells = [" ".join(f"{v:6.2f}" for v in found[task][m].values()) for m in given.members]
        print(f"{task:40}", *cells, flush=True)
    if not given.only:
        out = ROOT / "benchmarks/results/demo_chat.json"
        out.write_text(json.dumps({"count": given.count, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
