"""Conversations without a call: talk, countries, stories, passages, short JSON, repeating.

Names and values are swapped for made-up ones wherever the text is to be read and not recalled.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from demo_texts import QUESTIONS, Country
from demo_tools import random_tool, use
from demo_turns import Chat, Message, says, user
from demo_words import ADJECTIVES, NOUNS, described, foreign, name, text_value, whole, word

SYSTEMS = (
    "You are a helpful assistant.",
    "You answer in one sentence.",
    "You are a friendly guide.",
    "Be brief.",
    "Answer the question.",
)
TALK = (  # what is said, what is answered
    (("Good morning!", "Good morning.", "A good morning to you"), "Good morning! How can I help?"),
    (("Hi there!", "Hey!", "Hello there!", "Hello to you.", "Hey you"), "Hello! How can I help?"),
    (("Good evening!", "Good evening."), "Good evening! How can I help?"),
    (("How do you do?", "How are things?", "Are you well?"), "I am fine, thank you."),
    (("Who are you?", "What are you?", "Tell me who you are."), "I am a very small demo model."),
    (("What can you do?", "What do you know?"), "I know countries, stories and a few tools."),
    (("Thank you!", "Thanks.", "Many thanks!"), "You are welcome."),
    (("Goodbye!", "Bye.", "See you later!"), "Goodbye! Have a nice day."),
    (("I am happy today.", "What a nice day!"), "I am glad to hear that."),
    (("I am sad today.", "I feel bad."), "I am sorry to hear that."),
)
GREETINGS = tuple(said for group, _ in TALK for said in group)
FOLLOW_UPS = {
    "capital": ("And its capital?", "And what is its capital?"),
    "region": ("And where is it?", "Where is it?"),
    "peak": ("And its highest point?", "What is its highest point?"),
    "language": ("And which language do people speak there?", "What do they speak there?"),
    "people": ("What are its people called?",),
    "neighbour": ("Which country is next to it?", "And a neighbour?"),
    "domain": ("And its Internet code?",),
}


def _opening(rng: random.Random, share: float = 0.3) -> list[Message]:
    if rng.random() > share:
        return []
    return [{"role": "system", "content": rng.choice(SYSTEMS)}]


def small_talk(rng: random.Random, known: Sequence[Country]) -> Chat:
    """A greeting or two; in half of the conversations with tools that do not fit."""
    turns: list[Message] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        asked, answer = rng.choice(TALK)
        turns += [user(rng.choice(asked)), says(answer)]
    tools = [use(rng, known).tool for _ in range(rng.choice((0, 1, 1, 2)))]
    names = [tool["function"]["name"] for tool in tools]
    return Chat([*_opening(rng), *turns], tools if len(set(names)) == len(names) else tools[:1])


def memory(rng: random.Random, known: Sequence[Country]) -> Chat:
    """What the user said of themselves, asked for later."""
    who, value = name(rng), rng.choice((name(rng), rng.choice(NOUNS), str(whole(rng)), word(rng)))
    thing = rng.choice(("friend", "dog", "cat", "city", "number", "word", "food", "team", "town"))
    asked, answer = rng.choice(TALK)
    turns = [user(f"My name is {who}. My {thing} is {value}."), says(f"Nice to meet you, {who}.")]
    if rng.random() < 0.3:
        turns += [user(rng.choice(asked)), says(answer)]
    if rng.random() < 0.5:
        turns += [user("What is my name?"), says(f"Your name is {who}.")]
    turns = [*_opening(rng), *turns]
    return Chat([*turns, user(f"What is my {thing}?"), says(f"Your {thing} is {value}.")])


def country_chat(rng: random.Random, known: Sequence[Country]) -> Chat:
    """One question on a country, often more on the same; sometimes with tools that do not fit."""
    country = rng.choice(known)
    kinds = rng.sample(list(country.facts), min(len(country.facts), rng.choice((1, 1, 2, 3))))
    turns: list[Message] = []
    for kind in kinds:
        asked = QUESTIONS[kind][0] if not turns or rng.random() < 0.4 else FOLLOW_UPS[kind]
        answer = QUESTIONS[kind][1][0].format(c=country.name, v=country.facts[kind])
        turns += [user(rng.choice(asked).format(c=country.name)), says(answer)]
    tools = [random_tool(rng).tool] if rng.random() < 0.1 else []
    return Chat([*_opening(rng), *turns], tools)


_HEROES = (
    "fox dog cat bear bird frog duck rabbit lion mouse fish boy girl princess king tree boat car"
)
HEROES = _HEROES.split()
STORY_WAYS = (
    "Tell me a story about a {}.",
    "Write a short story about a {}.",
    "A story about a {}, please.",
)


def story_chat(rng: random.Random, told: Sequence[str]) -> Chat:
    """A story on request, about an animal or a thing that is in it."""
    for _ in range(20):
        story = rng.choice(told)
        heroes = [hero for hero in HEROES if len(re.findall(rf"\b{hero}\b", story)) > 1]
        if len(story) < 1100 and heroes:
            break
    else:
        heroes, story = ["child"], rng.choice(told)[:800]
    hero = rng.choice(heroes)
    way = rng.choice(STORY_WAYS)
    return Chat([*_opening(rng), user(way.format(hero)), says(" ".join(story.split()))])


def echo(rng: random.Random) -> Chat:
    """Repeat something: the shortest lesson in copying."""
    draw = rng.random()
    if draw < 0.4:
        text = " ".join(text_value(rng) for _ in range(rng.randint(1, 6)))
    elif draw < 0.6:
        text = " ".join(word(rng) for _ in range(rng.randint(2, 20)))
    elif draw < 0.8:
        text = " ".join(foreign(rng) for _ in range(rng.randint(1, 3)))
    else:
        text = " ".join(str(whole(rng)) for _ in range(rng.randint(1, 8)))
    ways = (
        ("Say {}", "{}"),
        ('Repeat "{}".', "{}"),
        ("Repeat after me: {}", "{}"),
        ("Quote '{}'", '"{}"'),
    )
    way, answer = rng.choice(ways)
    return Chat([user(way.format(text)), says(answer.format(text))])


RELATIONS = (  # a sentence, the answer too; questions; {s} who, {v} what: a kind; a key
    ("{s} lives in {v}.", ("Where does {s} live?",), "name", "town"),
    ("{s} works as a {v}.", ("What does {s} work as?", "What is the job of {s}?"), "noun", "job"),
    ("{s} has a {v}.", ("What does {s} have?",), "thing", "owns"),
    ("The best friend of {s} is {v}.", ("Who is the best friend of {s}?",), "name", "friend"),
    ("{s} is {v} years old.", ("How old is {s}?",), "number", "age"),
    ("{s} was built in {v}.", ("When was {s} built?",), "year", "year"),
    ("{s} likes {v}.", ("What does {s} like?",), "noun", "likes"),
    ("{s} costs {v} coins.", ("How much does {s} cost?", "What does {s} cost?"), "number", "price"),
    ("{s} was founded by {v}.", ("Who founded {s}?",), "name", "founder"),
    ("The colour of {s} is {v}.", ("What is the colour of {s}?",), "adjective", "colour"),
    ("The code of {s} is {v}.", ("What is the code of {s}?",), "text", "code"),
)


def _fact_value(rng: random.Random, kind: str) -> str:
    made = {
        "name": lambda: name(rng) if rng.random() < 0.7 else f"{name(rng)} {name(rng)}",
        "noun": lambda: rng.choice(NOUNS),
        "thing": lambda: described(rng),
        "number": lambda: str(rng.randint(2, 999)),
        "year": lambda: str(rng.randint(1000, 2030)),
        "adjective": lambda: rng.choice(ADJECTIVES),
        "text": lambda: text_value(rng),
    }
    return made[kind]()


Known = list[tuple[str, str]]  # question, answer; the answer is a sentence of the passage


def invented(rng: random.Random) -> Known:
    """Sentences about one made-up person or thing."""
    who = name(rng) if rng.random() < 0.7 else f"{name(rng)} {name(rng)}"
    known = []
    for sentence, asked, kind, _ in rng.sample(RELATIONS, rng.randint(1, 4)):
        value = _fact_value(rng, kind)
        line = sentence.format(s=who, v=value)
        known.append((rng.choice(asked).format(s=who), line))
    return known


def changed_country(rng: random.Random, countries: Sequence[Country]) -> Known:
    """Sentences on a country whose name or values are mostly made up."""
    country = rng.choice(countries)
    title = country.name if rng.random() < 0.5 else name(rng)
    known = []
    for kind in rng.sample(list(country.facts), rng.randint(1, len(country.facts))):
        value = country.facts[kind] if rng.random() < 0.4 else name(rng)
        if kind == "domain":
            value = "." + word(rng, 1)[:2]
        asked, answers = QUESTIONS[kind]
        sentence = answers[0].format(c=title, v=value)
        known.append((rng.choice(asked).format(c=title), sentence))
    return known


PASSAGE_WAYS = (
    "Use the context to answer.\n\nContext:\n{p}\n\nQuestion: {q}",
    "Answer the question from the context.\n\nContext:\n{p}\n\nQuestion: {q}",
    "Answer from the context only.\n\n{p}\n\nQuestion: {q}",
    "Context: {p}\n\nQuestion: {q}\n\nAnswer:",
    "Question: {q}\nContext: {p}\nAnswer:",
    "{p}\n\n{q}",
    "{q}\n\nContext:\n{p}",
)
PASSAGE_SYSTEMS = (
    "Answer from the context.\n\nContext:\n{p}",
    "Use this context to answer the question:\n\n{p}",
    "{p}",
    "You are a helpful assistant. Use the context to answer.\n\n{p}",
)
UNKNOWN = "I do not know."


def passage(rng: random.Random, countries: Sequence[Country]) -> Chat:
    """A question that a passage answers; now and then one that it does not."""
    groups = [
        invented(rng) if rng.random() < 0.5 else changed_country(rng, countries)
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))
    ]
    own = rng.choice(groups)
    question, answer = rng.choice(own)
    if rng.random() < 0.08:
        question, answer = rng.choice(invented(rng))[0], UNKNOWN
    paragraphs = []
    for group in groups:
        lines = [sentence for _, sentence in group]
        if rng.random() < 0.25:
            at = rng.randint(0, len(lines))
            true = rng.choice(rng.choice(countries).prose or ("",))
            lines.insert(at, " ".join(true.split()[:20]))
        paragraphs.append(" ".join(lines))
    text = rng.choice(("\n\n", "\n\n", "\n", " ")).join(paragraphs)
    if rng.random() < 0.35:
        system = rng.choice(PASSAGE_SYSTEMS).format(p=text)
        messages = [{"role": "system", "content": system}, user(question), says(answer)]
    else:
        messages = [user(rng.choice(PASSAGE_WAYS).format(p=text, q=question)), says(answer)]
    for _ in range(rng.choice((0, 0, 1, 2, 3, 4))):
        question, answer = rng.choice(rng.choice(groups))
        messages += [user(question), says(answer)]
    return Chat(messages)


_KEYS = """name color size price city country year owner animal job friend number title code kind
weight height town street food"""
KEYS = _KEYS.split()
ABOUT = ("Tell me about {}", "What do you know about {}?", "Describe {}")
SCHEMA_WAY = "Answer with JSON only, no other text. It must match this JSON schema: "
JSON_WAYS = (
    "{s}\nAnswer as JSON with keys {k}.",
    "Answer as JSON with keys {k}.\n\n{s}",
    "{s}. Give JSON with {k}.",
)


def _told(rng: random.Random, known: Sequence[Country]) -> tuple[str, dict[str, object]]:
    """A text, and what is to be read from it or known of it."""
    draw = rng.random()
    made: dict[str, object]
    if draw < 0.3:
        country = rng.choice(known)
        kinds = rng.sample(list(country.facts), min(len(country.facts), rng.choice((1, 2, 2, 3))))
        made = {"country": country.name}
        made |= {k: country.facts[k] for k in kinds}
        return rng.choice(ABOUT).format(country.name), made
    if draw < 0.6:
        who, lines = name(rng), []
        made = {rng.choice(("name", "title")): who}
        for sentence, _, kind, key in rng.sample(RELATIONS, rng.randint(1, 3)):
            value = _fact_value(rng, kind)
            lines.append(sentence.format(s=who, v=value))
            made[key] = int(value) if kind in ("number", "year") else value
        return " ".join(lines), made
    keys = rng.sample(KEYS, rng.choice((1, 2, 2, 3, 4)))
    made = {k: rng.choice((name(rng), name(rng), text_value(rng), whole(rng))) for k in keys}
    pairs = [f"{k} {v}" if rng.random() < 0.5 else f"{k} is {v}" for k, v in made.items()]
    if rng.random() < 0.3:
        rng.shuffle(pairs)
    return rng.choice(("", "Read this: ", "Extract: ")) + ", ".join(pairs), made


def _schema(rng: random.Random, made: dict[str, object]) -> str:
    """The JSON schema of an object, compact, as members are told it."""
    properties = {
        k: {"type": "integer" if isinstance(v, int) else "string"} for k, v in made.items()
    }
    whole_schema: dict[str, object] = {"properties": properties, "required": list(made)}
    if rng.random() < 0.4:
        about = {"description": f"{rng.choice(('A', 'One', 'The'))} {rng.choice(NOUNS)}."}
        whole_schema = about | whole_schema
    whole_schema["type"] = "object"
    return json.dumps(whole_schema, separators=(",", ":"))


def as_json(rng: random.Random, known: Sequence[Country]) -> Chat:
    """Short JSON out of a sentence, or out of what is known of a country."""
    source, made = _told(rng, known)
    listed, answer = ", ".join(made), says(json.dumps(made, ensure_ascii=False))
    if rng.random() < 0.5:
        told: Message = {"role": "system", "content": SCHEMA_WAY + _schema(rng, made)}
        return Chat([*_opening(rng, 0.2), told, user(source), answer])
    if rng.random() < 0.25:
        told = {"role": "system", "content": f"Answer as JSON with keys {listed}."}
        return Chat([told, user(source), answer])
    return Chat([user(rng.choice(JSON_WAYS).format(s=source, k=listed)), answer])
