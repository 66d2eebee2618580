"""The dev set: questions, the answers that are right, and how that is found out."""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from langchain_ensemble.chat.conversation import ChatRole, Conversation, Message
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name
from langchain_ensemble.evaluate.lines import json_lines
from langchain_ensemble.evaluate.metrics import (
    check_gold,
    check_metric,
    judged,
    letter,
    normalise,
    number,
)
from langchain_ensemble.vocab.vocabulary import check_text

Metric = str | Callable[[str, Sequence[str]], bool]
Source = str | Path | Sequence[Mapping[str, Any]]

FIELDS = ("prompt", "messages", "answer", "answers", "metric")
ROLES = {"human": "user", "ai": "assistant"}
LETTERS = {*string.ascii_uppercase}


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: Raw text that is gone on with; None where there are messages.
        messages: ``(role, text)`` turns; None where there is a prompt.
        answers: Any of these is right.
        metric: A name of ``evaluate.metrics.METRICS``, or a function of the answer's text and
            ``answers``.
        where: Which one of the dev set it is, for errors.
    """

    prompt: str | None
    messages: tuple[tuple[str, str], ...] | None
    answers: tuple[str, ...]
    metric: Metric
    where: str = field(default="a question", compare=False)

    def right(self, text: str) -> bool:
        """Whether an answer is right.

        Raises:
            ConfigError: The metric failed.
        """
        return judged(self.metric, text, self.answers, f"{self.where} ({self.text!r:.80})")

    def said(self, text: str) -> str:
        """What an answer comes to, so that two answers can be compared; empty: nothing."""
        if self.metric == "last_number":
            found = number(text)
            return "" if found is None else f"{(found + 0).normalize():f}"  # 42.00 and -0 as well
        if self.metric == "letter":
            return next((name for name in LETTERS if letter(text, name)), "")
        return normalise(text)

    def question(self, chat: bool) -> str | tuple[tuple[str, str], ...]:
        """What is asked: the raw prompt, or turns."""
        return self.turns if chat else cast(str, self.prompt)

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The messages; a prompt is a user's."""
        return self.messages or (("user", str(self.prompt)),)

    @property
    def text(self) -> str:
        """The question as one text, for people."""
        if self.messages is None:
            return str(self.prompt)
        return "\n".join(f"{role}: {text}" for role, text in self.messages)

    @property
    def conversation(self) -> Conversation:
        """The question as turns."""
        turns = (Message(cast(ChatRole, role), text) for role, text in self.turns)
        return Conversation(tuple(turns))


def read_dev_set(source: Source, *, metric: Metric = "exact_match") -> tuple[Item, ...]:
    """Read a dev set.

    Args:
        source: A file of JSON lines, or the items themselves: mappings with ``prompt`` or
            ``messages`` (as ``{"role", "content"}`` or ``(role, text)``), ``answer`` or
            ``answers``, and ``metric`` where it is not the common one.
        metric: Of items that name none.

    Returns:
        The items, in their order.

    Raises:
        ConfigError: No items, a line that is no JSON object, or an item that is not complete; it
            is named by its line or number.
    """
    if isinstance(source, str | Path):
        rows = list(json_lines(source, "dev set"))
        where = f"dev set {str(source)!r}, line"
    elif not isinstance(source, Iterable):
        raise ConfigError(f"dev_set is {source!r}; give a file of JSON lines, or the items")
    else:
        rows = list(enumerate(source, 1))
        where = "dev set, item"
    if not rows:
        raise ConfigError(f"{where.split(',')[0]} has no items; at least one question is needed")
    items = tuple(_item(row, metric, f"{where} {place}") for place, row in rows)
    kinds = {item.messages is None for item in items}
    if len(kinds) > 1:
        raise ConfigError(
            f"{where.split(',')[0]} has items with prompt and items with messages; base models "
            "read prompts, instruct models messages: split it"
        )
    _warn_of_letters(items)
    return items


def _warn_of_letters(items: Sequence[Item]) -> None:
    """Say how many questions no letter can answer right."""
    lost = [i for i in items if i.metric == "letter" and not {*map(str.strip, i.answers)} & LETTERS]
    if lost:
        warnings.warn(
            f"the right answer of {len(lost)} of {len(items)} questions is none of the letters A "
            f"to Z ({lost[0].where}: {lost[0].answers[0]!r}), and metric 'letter' reads no other; "
            "they count as wrong",
            EnsembleWarning,
            stacklevel=3,
        )


def _item(row: Any, metric: Metric, where: str) -> Item:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is {row!r}; it must be an object with prompt and answer")
    for name in row:
        if name not in FIELDS:
            raise ConfigError(f"{where}: {unknown_name('field', name, FIELDS)}")
    for one, other in (("prompt", "messages"), ("answer", "answers")):
        if (one in row) == (other in row):
            both = "both" if one in row else "neither"
            raise ConfigError(f"{where} has {both} of {one} and {other}; give one of them")
    chosen = row.get("metric", metric)
    check_metric(chosen, where)
    prompt = row.get("prompt")
    if "prompt" in row and not isinstance(prompt, str):
        raise ConfigError(f"{where}: prompt is {prompt!r}; it must be a text")
    messages = _messages(row["messages"], where) if "messages" in row else None
    answers = _answers(row, where)
    check_gold(chosen, answers, where)
    item = Item(prompt, messages, answers, chosen, where)
    try:
        check_text(item.text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return item


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = row.get("answers", row.get("answer"))
    listed = [given] if isinstance(given, str | int | float) else given
    answers = [str(one) for one in listed] if isinstance(listed, Sequence) else []
    if not answers or not all(one.strip() for one in answers):
        raise ConfigError(f"{where}: answer is {given!r}; it must be a text, or several")
    return tuple(answers)


def _messages(given: Any, where: str) -> tuple[tuple[str, str], ...]:
    turns = []
    for turn in given if isinstance(given, list | tuple) else []:
        pair = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else turn
        role, text = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant") or not isinstance(text, str):
            raise ConfigError(
                f"{where}: {turn!r} is no message; give role (system, user or assistant) and "
                "content, a text"
            )
        turns.append((str(role), text))
    if not turns:
        raise ConfigError(f"{where}: messages is {given!r}; give at least one")
    return tuple(turns)
