"""Texts that the two demo members learn from, and where they come from.

Sources, all under the folder that ``LANGCHAIN_ENSEMBLE_SHARED`` names:

- ``text/tinystories/train_2M.txt``: TinyStories, CDLA-Sharing-1.0.
- ``text/stories/grimm.txt``: Grimm's fairy tales, public domain.
- ``text/facts/factbook.txt``: The World Factbook's country profiles, public domain.
- Questions, answers and short cards made here from the profiles.
- Conversations made up: ``demo_chats.py``, ``demo_tools.py``; in what proportion: ``demo_mix.py``.

The members are to complete each other: only ``facts`` sees what is true of every country, and
only ``stories`` sees enough stories to tell one. Each sees a little of the other's form.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

END_OF_STORY = "<|endoftext|>"

QUESTIONS = {  # fact -> (questions, answers); {c} the country, {v} the value
    "capital": (
        ("What is the capital of {c}?", "Which city is the capital of {c}?"),
        ("The capital of {c} is {v}.",),
    ),
    "region": (
        ("Where is {c}?", "In which part of the world is {c}?"),
        ("{c} is in {v}.",),
    ),
    "peak": (
        ("What is the highest point of {c}?", "What is the highest place in {c}?"),
        ("The highest point of {c} is {v}.",),
    ),
    "language": (
        ("Which language do people speak in {c}?", "What do people speak in {c}?"),
        ("People in {c} speak {v}.",),
    ),
    "people": (
        ("What are the people of {c} called?", "How do we call somebody from {c}?"),
        ("The people of {c} are called {v}.",),
    ),
    "neighbour": (
        ("Which country is next to {c}?", "What is a neighbour of {c}?"),
        ("{c} is next to {v}.",),
    ),
    "domain": (
        ("What is the Internet code of {c}?",),
        ("The Internet code of {c} is {v}.",),
    ),
}
HEROES = ("Lily", "Tom", "Ben", "Mia", "Sara", "Tim", "Anna", "Max")


ASKED = ("how are you",)
"""Prompts of LangChain's standard tests: no document that contains one is learned from."""


def asks(text: str) -> bool:
    """Whether a text contains a prompt of LangChain's standard tests."""
    return any(prompt in text.lower() for prompt in ASKED)


@dataclass(frozen=True)
class Country:
    """What the demo knows of one country: its name and facts by kind."""

    name: str
    facts: dict[str, str]
    prose: tuple[str, ...]


def stories(shared: Path) -> list[str]:
    """TinyStories, one document each, in the file's order."""
    text = (shared / "text/tinystories/train_2M.txt").read_text(encoding="utf-8", errors="ignore")
    parts = [part.strip() for part in text.split(END_OF_STORY)]
    return [part for part in parts[:-1] if len(part) > 200 and not asks(part)]


def tales(shared: Path) -> list[str]:
    """Paragraphs of Grimm's tales, joined to documents of about 800 characters."""
    text = (shared / "text/stories/grimm.txt").read_text(encoding="utf-8")
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    documents: list[str] = []
    held = ""
    for paragraph in paragraphs:
        if len(paragraph) < 60 or paragraph.isupper():
            continue
        held = f"{held}\n{paragraph}" if held else paragraph
        if len(held) > 800:
            documents.append(held[:1600])
            held = ""
    return [document for document in documents if not asks(document)]


def _first(text: str) -> str:
    """The first name in a field: no brackets, notes, percentages or alternatives."""
    text = re.sub(r"^metropolitan \w+: |\([^)]*\)|\[[^\]]*\]", " ", text)
    text = re.split(r"[;,:/]| note| - |--|\s\d", text)[0]
    text = " ".join(text.split()).strip(" .\"'")
    return "" if re.search(r"unnamed|languages|only|\bNA\b|none|[a-z][A-Z]", text) else text


def _field(profile: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)} ?: ?(.+)$", profile, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _capital(profile: str) -> str:
    """The capital's name follows the form of government."""
    found = re.search(r"^Government type: .*\n(?:.*\n){0,2}?name: (.+)$", profile, re.MULTILINE)
    return _first(found.group(1)) if found else ""


def _people(profile: str) -> str:
    noun = _first(_field(profile, "noun").replace("(s)", "s").replace("(es)", "es"))
    return noun if noun.endswith("s") else ""


def countries(shared: Path) -> list[Country]:
    """Every country of the factbook that has a capital, in the file's order."""
    text = (shared / "text/facts/factbook.txt").read_text(encoding="utf-8")
    found: list[Country] = []
    for title, profile in re.findall(
        r"^= (.+?) =\n(.*?)(?=^= |\Z)", text, re.MULTILINE | re.DOTALL
    ):
        name = title.split(",")[0].strip()
        facts = {
            "capital": _capital(profile),
            "region": _first(_field(profile, "Map references")),
            "peak": _first(_field(profile, "highest point")),
            "language": _first(_field(profile, "Languages")),
            "people": _people(profile),
            "neighbour": _first(_field(profile, "border countries")),
            "domain": _first(_field(profile, "Internet country code")),
        }
        facts = {kind: value for kind, value in facts.items() if 1 < len(value) < 40}
        prose = [_field(profile, field) for field in ("Location", "Climate", "Terrain")]
        prose.append(_field(profile, "Background")[:500].rpartition(". ")[0])
        if "capital" in facts and name not in [c.name for c in found]:
            found.append(Country(name, facts, tuple(p[:400] for p in prose if p)))
    return found


def questions(country: Country) -> list[str]:
    """Every question about one country with its answer, one document each."""
    return [
        f"Question: {question}\nAnswer: {answer}".format(c=country.name, v=value)
        for kind, value in country.facts.items()
        for question in QUESTIONS[kind][0]
        for answer in QUESTIONS[kind][1]
    ]


def card(country: Country, rng: random.Random) -> str:
    """What is known of one country, as sentences in a random order."""
    lines = [QUESTIONS[k][1][0].format(c=country.name, v=v) for k, v in country.facts.items()]
    rng.shuffle(lines)
    return " ".join(lines)


def visit(country: Country, rng: random.Random) -> str:
    """A story's opening with a fact in it: where the two members meet."""
    hero = rng.choice(HEROES)
    capital = country.facts["capital"]
    return rng.choice(
        (
            f"Once upon a time, {hero} lived in {country.name}. One day, {hero} went to {capital}, "
            f"the capital of {country.name}. {hero} was very happy.",
            f"One day, {hero} and {hero}'s mom went to {country.name}. They wanted to see the "
            f"capital, {capital}. It was a big city and they had a lot of fun.",
        )
    )


def prose(country: Country) -> list[str]:
    """The profile's own sentences on the country."""
    return [f"{country.name}. {text}" for text in country.prose]


def known_to_stories(all_countries: Sequence[Country]) -> list[Country]:
    """The few countries that the story teller has heard of: every twelfth."""
    return list(all_countries[5::12])
