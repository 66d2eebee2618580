"""Conversations in which a tool is called: requests, calls, results and answers, all made up.

Two tools are always the same, ``calculator`` and ``country_fact``, and a few do sums under many
names. All others have names, parameters and descriptions at random, so that a member learns to read
the schema and to copy from the request. A third of the conversations go on to the tool's result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo_texts import QUESTIONS, Country
from demo_turns import Chat, Message, Use, calls, result, says, schema, user
from demo_words import (
    ASIDES,
    NOUNS,
    PARAMETERS,
    VERBS,
    decimal,
    name,
    phrase,
    text_value,
    whole,
    word,
)

SUMS = {  # what it is called, sign, words between two numbers
    "multiply": ("*", ("times", "multiplied by")),
    "add": ("+", ("plus", "and")),
    "subtract": ("-", ("minus", "less")),
    "divide": ("/", ("divided by", "over")),
}


def _number(rng: random.Random) -> int:
    return rng.randint(5, 10 ** rng.choice((1, 2, 2, 3)) + 5)


def _worth(a: int, sign: str, b: int) -> str:
    if sign == "/":
        return str(round(a / b, 2)).removesuffix(".0")
    return str({"*": a * b, "+": a + b, "-": a - b}[sign])


def calculator(rng: random.Random) -> Use:
    """The calculator: one expression, spelled as it is to be called."""
    kind = rng.choice(list(SUMS))
    sign, words = SUMS[kind]
    a, b = _number(rng), _number(rng)
    asked = rng.choice(
        (f"{a} {sign} {b}", f"{a} {sign} {b}", f"{a} {words[0]} {b}", f"{a}{sign}{b}")
    )
    about = rng.choice(("Calculate an expression.", "Evaluate an expression.", "Do a sum."))
    request = rng.choice(
        ("What is {}?", "How much is {}?", "Calculate {}.", "Compute {}.", "Please work out {}.")
    ).format(asked)
    worth = _worth(a, sign, b)
    return Use(
        schema("calculator", about, {"expression": "string"}),
        request,
        {"expression": f"{a} {sign} {b}"},
        worth,
        f"The answer is {worth}.",
    )


def two_numbers(rng: random.Random) -> Use:
    """A tool for one kind of sum, under many names."""
    kind = rng.choice(list(SUMS))
    sign, words = SUMS[kind]
    a, b = _number(rng), _number(rng)
    keys = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right")))
    title = rng.choice((kind, kind, f"{kind}_numbers", f"do_{kind}", f"{kind}_{word(rng)}"))
    about = rng.choice((f"{kind.title()} {keys[0]} and {keys[1]}.", f"{kind.title()} two numbers."))
    asked = rng.choice((f"{a} {sign} {b}", f"{a} {words[0]} {b}", f"{a} {words[1]} {b}"))
    request = rng.choice(
        ("What is {}?", "How much is {}?", "Calculate {}.", "I want to know {}.")
    ).format(asked)
    if rng.random() < 0.2:
        request = f"{kind.title()} {a} and {b}."
    worth = _worth(a, sign, b)
    return Use(
        schema(title, about, dict.fromkeys(keys, rng.choice(("integer", "integer", "number")))),
        request,
        dict(zip(keys, (a, b), strict=True)),
        worth,
        f"The answer is {worth}.",
    )


def country_fact(rng: random.Random, known: Sequence[Country]) -> Use:
    """The look-up of a fact, on real countries and on made-up ones."""
    country = rng.choice(known)
    kind = rng.choice(list(country.facts))
    title = country.name if rng.random() < 0.6 else name(rng)
    value = country.facts[kind] if rng.random() < 0.6 else name(rng)
    about = rng.choice(("Look up a fact about a country.", "Get one fact of a country."))
    return Use(
        schema("country_fact", about, {"country": "string", "field": "string"}),
        rng.choice(QUESTIONS[kind][0]).format(c=title),
        {"country": title, "field": kind},
        value,
        QUESTIONS[kind][1][0].format(c=title, v=value),
    )


def _title(rng: random.Random, verb: str, noun: str) -> str:
    draw = rng.random()
    if draw < 0.6:
        return f"{verb}_{noun}"
    if draw < 0.65:
        return f"{verb}{noun.title()}"
    if draw < 0.7:
        return rng.choice((noun.title(), f"{noun.title()}{word(rng).title()}"))
    if draw < 0.8:
        return f"{noun}_{word(rng)}"
    return rng.choice((f"{word(rng)}_{word(rng)}", word(rng, 3), f"{verb}_{noun}_{word(rng)}"))


def _value(rng: random.Random, kind: str) -> Any:
    if kind == "integer":
        return whole(rng)
    if kind == "number":
        return decimal(rng)
    return rng.random() < 0.5 if kind == "boolean" else text_value(rng)


def _shown(value: Any, quote: str) -> str:
    """A value as a request spells it: strings in quotes, truth as true or false."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{quote}{value}{quote}" if isinstance(value, str) else str(value)


def _wishes(title: str, verb: str, noun: str, shown: dict[str, str]) -> tuple[str, ...]:
    """Ways to ask for a call, by how many arguments it takes."""
    act = verb.replace("_", " ").capitalize()
    pairs = [f"{key.replace('_', ' ')} {value}" for key, value in shown.items()]
    if not shown:
        return (
            f"{act} the {noun}.",
            f"Use {title}.",
            f"What does {title}() give?",
            f"Call {title} for me.",
            f"What is the {noun}?",
            f"Please run {title}().",
        )
    said = [f"The {key.replace('_', ' ')} is {value}." for key, value in shown.items()]
    first = next(iter(shown.values()))
    rest = ", ".join(pairs[1:])
    positional = ", ".join(shown.values())
    ways = [
        f"Use {title} with {' and '.join(pairs)}.",
        f"{act} a {noun}: {', '.join(pairs)}.",
        f"{act} a {noun}. {' '.join(said)}",
        f"{act} the {noun} with {' and '.join(pairs)}.",
        f"What does {title}({positional}) give?",
        f"Run {title}({positional}).",
    ]
    if len(shown) == 1:
        ways += [
            f"{act} the {noun} {first}.",
            f"{act} {first}.",
            f"What is the {noun} of {first}?",
            f"I need the {noun} for {first}.",
            f"{act} a {noun} called {first}.",
        ]
    else:
        ways += [f"{act} a {noun} named {first} with {rest}.", f"{act} the {noun} {first}, {rest}."]
    return tuple(ways)


@dataclass(frozen=True)
class Invented:
    """A tool that nobody has seen before, and what it is about."""

    title: str
    verb: str
    noun: str
    kinds: dict[str, str]
    tool: dict[str, Any]


def invent(rng: random.Random) -> Invented:
    """Make a tool up: name, parameters and descriptions."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    title = _title(rng, verb, noun)
    names = rng.sample(PARAMETERS, rng.choice((0, 1, 1, 1, 2, 2, 2, 3)))
    if names and rng.random() < 0.25:
        names[0] = rng.choice((f"{noun}_{names[0]}", word(rng)))
    kinds = {
        key: rng.choice(("string", "string", "string", "integer", "integer", "number", "boolean"))
        for key in names
    }
    act = verb.replace("_", " ").capitalize()
    about = rng.choice((f"{act} a {noun}.", f"{act} the {noun}.", f"{act} {phrase(rng)}."))
    notes = None
    if rng.random() < 0.4:
        notes = {key: rng.choice((f"The {key}.", f"{key.title()} of the {noun}.")) for key in kinds}
        if rng.random() < 0.3:
            lines = "\n".join(f"        {key}: {note}" for key, note in notes.items())
            about, notes = f"{about}\n\n    Args:\n{lines}", None
    return Invented(title, verb, noun, kinds, schema(title, about, kinds, notes))


def ask(rng: random.Random, made: Invented) -> Use:
    """A request that fits the tool, with values at random."""
    arguments = {key: _value(rng, kind) for key, kind in made.kinds.items()}
    quote = rng.choice(("'", '"', "", ""))
    shown = {key: _shown(value, quote) for key, value in arguments.items()}
    request = rng.choice(_wishes(made.title, made.verb, made.noun, shown))
    told = rng.choice((str(whole(rng)), str(decimal(rng)), text_value(rng), phrase(rng)))
    asked = request.startswith("What")
    answer = f"The {made.noun} is {told}." if asked else f"Done: {told}."
    return Use(made.tool, request, arguments, told, answer)


def random_tool(rng: random.Random) -> Use:
    """One use of a tool that nobody has seen before."""
    return ask(rng, invent(rng))


def use(rng: random.Random, known: Sequence[Country]) -> Use:
    """One use of one tool, of any kind."""
    draw = rng.random()
    if draw < 0.1:
        return calculator(rng)
    if draw < 0.22:
        return two_numbers(rng)
    return country_fact(rng, known) if draw < 0.32 else random_tool(rng)


SYSTEMS = ("You are a helpful assistant.", "Use the tools.", "You answer in one sentence.", "")
FAILURES = ("not found", "no answer", "the service is busy", "no such value", "too many requests")


def _opening(rng: random.Random) -> list[Message]:
    text = rng.choice(SYSTEMS) if rng.random() < 0.3 else ""
    return [{"role": "system", "content": text}] if text else []


def _schemas(rng: random.Random, known: Sequence[Country], own: Use) -> list[dict[str, Any]]:
    """The tool itself and up to two that do not fit, in any order."""
    tools = [own.tool]
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        other = use(rng, known).tool
        if other["function"]["name"] not in [t["function"]["name"] for t in tools]:
            tools.append(other)
    rng.shuffle(tools)
    return tools


def _aftermath(rng: random.Random, own: Use) -> list[Message]:
    """What follows a call: its result told, or its failure told."""
    if rng.random() < 0.12:
        why = rng.choice(FAILURES) if rng.random() < 0.5 else phrase(rng)
        return [result(f"Error: {why}"), says(f"The tool failed: {why}.")]
    return [result(own.result), says(own.answer)]


def one_call(rng: random.Random, known: Sequence[Country]) -> Chat:
    """A request and its call; in half of the conversations, the result and the answer."""
    own = use(rng, known)
    request = own.request + rng.choice(ASIDES)
    messages = [*_opening(rng), user(request), calls(own.call)]
    if rng.random() < 0.5:
        messages += _aftermath(rng, own)
    return Chat(messages, _schemas(rng, known, own))


def two_calls(rng: random.Random, known: Sequence[Country]) -> Chat:
    """Two requests in a turn, two calls in a turn, two results and one answer."""
    make = rng.choice((calculator, two_numbers, lambda r: country_fact(r, known)))
    one, two = make(rng), make(rng)
    tools = [one.tool]
    if one.tool["function"]["name"] != two.tool["function"]["name"]:
        tools.append(two.tool)
    else:
        two = Use(one.tool, *_renamed(one, two))
    messages = [user(f"{one.request} {two.request}"), calls(one.call, two.call)]
    if rng.random() < 0.5:
        messages += [result(one.result), result(two.result), says(f"{one.answer} {two.answer}")]
    return Chat(messages, tools)


def _renamed(one: Use, two: Use) -> tuple[str, dict[str, Any], str, str]:
    arguments = dict(zip(one.arguments, two.arguments.values(), strict=True))
    return two.request, arguments, two.result, two.answer


def several_turns(rng: random.Random, known: Sequence[Country]) -> Chat:
    """Two to four requests in turn to the same one or two made-up tools."""
    tools = [invent(rng) for _ in range(rng.choice((1, 1, 2)))]
    messages = _opening(rng)
    for _ in range(rng.choice((2, 3, 4))):
        own = ask(rng, rng.choice(tools))
        messages += [user(own.request + rng.choice(ASIDES)), calls(own.call)]
        messages += _aftermath(rng, own)
    titles = {made.title: made.tool for made in tools}
    if len(titles) < len(tools):
        return one_call(rng, known)
    return Chat(messages, list(titles.values()))
