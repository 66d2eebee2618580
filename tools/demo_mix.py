"""What each demo member reads in what proportion, as rows of ids with a weight each.

A row is one document or one conversation, so that it begins as a prompt begins. Of a conversation
only the assistant's turns count: prompts are full of noise that nobody can foresee.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_chats import as_json, country_chat, echo, memory, passage, small_talk, story_chat
from demo_texts import (
    Country,
    card,
    countries,
    known_to_stories,
    prose,
    questions,
    stories,
    tales,
    visit,
)
from demo_tools import one_call, several_turns, two_calls
from demo_turns import Chat

LONGEST = 1024  # ids of a row; longer ones are left out, longer documents cut
ROWS = 1024  # ids of a batch, padding included
BATCHES = 2  # batches of a step
BLOCK = 64  # steps whose texts are drawn, sorted by length and shuffled together

SHARES = {  # of all ids
    "facts": {
        "questions": 0.13,
        "card": 0.04,
        "visit": 0.02,
        "prose": 0.03,
        "story": 0.04,
        "story_chat": 0.02,
        "country_chat": 0.10,
        "small_talk": 0.04,
        "memory": 0.02,
        "echo": 0.06,
        "passage": 0.16,
        "one_call": 0.14,
        "two_calls": 0.03,
        "several_turns": 0.10,
        "as_json": 0.07,
    },
    "stories": {
        "questions": 0.01,
        "card": 0.005,
        "visit": 0.005,
        "tale": 0.02,
        "story": 0.19,
        "story_chat": 0.12,
        "country_chat": 0.01,
        "small_talk": 0.04,
        "memory": 0.02,
        "echo": 0.06,
        "passage": 0.16,
        "one_call": 0.15,
        "two_calls": 0.03,
        "several_turns": 0.10,
        "as_json": 0.07,
    },
}
WEIGHTS = {"story": 0.4, "tale": 0.4, "prose": 0.4, "story_chat": 0.4}
"""Of an id, by kind; 1 for all other kinds: a story has many ids and few lessons."""
EARLY = {"facts": 0.6, "stories": 0.75}  # of the training: lessons in copying come more often
OFTEN = {"echo": 3.0, "memory": 2.0}  # then, so many times their shares
DRILL = 0.3  # then, ids of drills for an id of all other kinds together, before the above


@dataclass(frozen=True)
class Library:
    """The texts that a member may draw from."""

    known: Sequence[Country]
    every: Sequence[Country]
    told: Sequence[str]
    tales: Sequence[str]

    @classmethod
    def of(cls, name: str, shared: Path) -> Library:
        """Read the sources of one member: ``stories`` has heard of few countries."""
        every = countries(shared)
        known = known_to_stories(every) if name == "stories" else every
        told = stories(shared) if name == "stories" else stories(shared)[:600]
        return cls(known, every, told, tales(shared)[:200])


Made = Callable[[random.Random], "str | Chat"]


def makers(library: Library) -> dict[str, Made]:
    """How a text of each kind is drawn."""
    known = library.known
    return {
        "questions": lambda rng: rng.choice(questions(rng.choice(known))),
        "card": lambda rng: card(rng.choice(known), rng),
        "visit": lambda rng: visit(rng.choice(known), rng),
        "prose": lambda rng: rng.choice(prose(rng.choice(known)) or [""]),
        "story": lambda rng: rng.choice(library.told),
        "tale": lambda rng: rng.choice(library.tales),
        "story_chat": lambda rng: story_chat(rng, library.told),
        "country_chat": lambda rng: country_chat(rng, known),
        "small_talk": lambda rng: small_talk(rng, library.every),
        "memory": lambda rng: memory(rng, library.every),
        "echo": echo,
        "passage": lambda rng: passage(rng, library.every),
        "one_call": lambda rng: one_call(rng, library.every),
        "two_calls": lambda rng: two_calls(rng, library.every),
        "several_turns": lambda rng: several_turns(rng, library.every),
        "as_json": lambda rng: as_json(rng, known),
    }


def render(tokenizer: Any, chat: Chat, upto: int, prompt: bool) -> str:
    """The first ``upto`` messages as text, with or without the generation prompt."""
    text = tokenizer.apply_chat_template(
        chat.messages[:upto], tools=chat.tools or None, add_generation_prompt=prompt, tokenize=False
    )
    return str(text)


def chat_row(tokenizer: Any, chat: Chat) -> tuple[list[int], list[float]]:
    """A conversation's ids, and weight 1 on the assistant's turns and their ends."""
    text = render(tokenizer, chat, len(chat.messages), False)
    spans = []
    for at, message in enumerate(chat.messages):
        if message["role"] == "assistant":
            start = len(render(tokenizer, chat, at, True))
            spans.append((start, len(render(tokenizer, chat, at + 1, False).rstrip("\n"))))
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = [
        float(any(start <= at < end for start, end in spans)) for at, _ in coded["offset_mapping"]
    ]
    return coded["input_ids"], weights


def document_row(tokenizer: Any, text: str, end: int) -> tuple[list[int], list[float]]:
    """A document's ids and its end, all of weight 1."""
    ids = [*tokenizer(text)["input_ids"], end][:LONGEST]
    return ids, [1.0] * len(ids)


def drill_row(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[float]]:
    """Ids at random, twice or more: nothing but looking back tells what comes next."""
    first = 300  # above control ids and single bytes in both vocabularies
    once = rng.sample(range(first, len(tokenizer)), rng.randint(4, 40))
    times = rng.randint(2, 4)
    weights = [0.0] * len(once) + [1.0] * (len(once) * (times - 1))
    return once * times, weights


Row = tuple[list[int], list[float]]


def rows(name: str, tokenizer: Any, library: Library, rng: random.Random, early: bool) -> list[Row]:
    """The rows of one block: always the kind that is furthest behind its share."""
    shares = {k: v * (OFTEN.get(k, 1.0) if early else 1.0) for k, v in SHARES[name].items()}
    if early:
        shares["drill"] = DRILL
    made, drawn = makers(library), dict.fromkeys(shares, 0.0)
    end = tokenizer.convert_tokens_to_ids("</s>" if name == "stories" else "<|endoftext|>")
    found: list[Row] = []
    while sum(drawn.values()) < BLOCK * BATCHES * ROWS * 0.95:
        kind = min(shares, key=lambda k: drawn[k] / shares[k])
        text = made[kind](rng) if kind in made else ""
        if kind == "drill":
            ids, weights = drill_row(tokenizer, rng)
        elif isinstance(text, str):
            ids, weights = document_row(tokenizer, text, end)
        else:
            ids, weights = chat_row(tokenizer, text)
        if len(ids) <= LONGEST:
            found.append((ids, [w * WEIGHTS.get(kind, 1.0) for w in weights]))
        drawn[kind] += len(ids)
    return found


def batches(found: list[Row], rng: random.Random) -> list[list[Row]]:
    """Rows of like length together, at most ROWS ids with padding; batches in random order."""
    rng.shuffle(found)
    found.sort(key=lambda row: len(row[0]))
    made: list[list[Row]] = [[]]
    for row in found:  # ascending, so a row is as wide as its batch
        if made[-1] and (len(made[-1]) + 1) * len(row[0]) > ROWS:
            made.append([])
        made[-1].append(row)
    rng.shuffle(made)
    return made
