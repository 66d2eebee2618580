"""Asks an ensemble, or one candidate, every question of a dev set; keeps what was said."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langchain_ensemble.chat.conversation import ChatRequest
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.confidence import confidence_features
from langchain_ensemble.decoding.records import TokenRecord
from langchain_ensemble.errors import ConfigError, EnsembleWarning
from langchain_ensemble.llms import EnsembleLLM

Model = EnsembleLLM | ChatEnsemble
Progress = Callable[[str, int, int], None]

TOGETHER = 8
"""Answers that are decoded as rows of the same forwards, at most, but for one question's."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: What was said.
        steps: Decode steps.
        seconds: Its share of the time that its batch took.
        features: How it came about, by the names of ``confidence.FEATURES``.
    """

    text: str
    steps: int
    seconds: float
    features: dict[str, float]


class Answers:
    """Replies by content: what was asked of whom. On disk too, where a file is given."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Read what the file holds.

        Args:
            path: JSON lines, written as answers come; None: kept in memory.

        Raises:
            ConfigError: The file cannot be read or holds something else.
        """
        self._path = None if path is None else Path(path).expanduser()
        self._kept: dict[str, list[Reply]] = {}
        if self._path is not None and not self._path.parent.is_dir():
            raise ConfigError(
                f"answers {str(self._path)!r} cannot be kept: there is no folder "
                f"{str(self._path.parent)!r}; make it first"
            )
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the answers {str(path)!r}: {error}") from error
        if lines and not lines[-1].endswith("\n"):  # a run was killed while it wrote
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        for place, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self._kept[row["key"]] = [Reply(**reply) for reply in row["replies"]]
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"answers {str(path)!r}, line {place} is no answer of an earlier run "
                    f"({error}); give a file that choose wrote, or a new one"
                ) from error

    def get(self, key: str) -> list[Reply] | None:
        """The replies to one question, None: it was not asked."""
        return self._kept.get(key)

    def put(self, key: str, replies: Sequence[Reply]) -> None:
        """Keep the replies to one question."""
        self._kept[key] = list(replies)
        if self._path is not None:
            line = json.dumps({"key": key, "replies": [asdict(reply) for reply in replies]})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def ask(
    model: Model,
    items: Sequence[Item],
    answers: Answers,
    stage: str,
    progress: Progress,
    stamps: Sequence[str] = (),
) -> list[list[Reply]]:
    """Answer every question; the weights are in memory only while it lasts.

    Args:
        model: The ensemble, with the request's settings as fields.
        items: The questions.
        answers: What is known already; what is new is added.
        stage: What ``progress`` calls this.
        progress: Called with (stage, done, total).
        stamps: What else an answer depends on: the state of the members' weights.

    Returns:
        ``[question][n]`` replies.
    """
    identity = json.dumps([model.identity, *stamps], sort_keys=True, default=repr)
    chat = isinstance(model, ChatEnsemble)
    keys = [_key(identity, item, chat) for item in items]
    missing = [place for place, key in enumerate(keys) if answers.get(key) is None]
    progress(stage, len(items) - len(missing), len(items))
    if missing:
        with model:
            model.load()
            step = max(1, TOGETHER // model.n)
            for start in range(0, len(missing), step):
                places = missing[start : start + step]
                replies = _answered(model, [items[place] for place in places])
                for place, said in zip(places, replies, strict=True):
                    answers.put(keys[place], said)
                progress(stage, len(items) - len(missing) + start + len(places), len(items))
    return [answers.get(key) or [] for key in keys]


def _key(identity: str, item: Item, chat: bool) -> str:
    whole = json.dumps([identity, item.question(chat)], ensure_ascii=False)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _answered(model: Model, items: Sequence[Item]) -> list[list[Reply]]:
    began = time.perf_counter()
    if isinstance(model, EnsembleLLM):
        found = model.engine.generate([str(item.prompt) for item in items], model.request())
        rows = [[(one.text, one.tokens) for one in answers] for answers in found]
    else:
        with ThreadPoolExecutor(len(items)) as pool:
            rows = list(pool.map(lambda item: _chat(model, item), items))
    seconds = (time.perf_counter() - began) / sum(map(len, rows))
    return [
        [Reply(text, len(tokens), seconds, confidence_features(tokens)) for text, tokens in row]
        for row in rows
    ]


def _chat(model: ChatEnsemble, item: Item) -> list[tuple[str, tuple[TokenRecord, ...]]]:
    """All answers to one conversation."""
    chat = ChatRequest(thinking=model.thinking, thinking_tokens=model.thinking_tokens)
    texts: list[str] = [""] * model.n
    tokens: list[list[TokenRecord]] = [[] for _ in texts]
    with model.engine.open_chat(item.conversation, model.request(), chat) as turn:
        while not turn.done:
            for piece in turn.step():
                if piece.channel == "text":
                    texts[piece.row] += piece.text
                    tokens[piece.row] += piece.tokens
    return [(text, tuple(seen)) for text, seen in zip(texts, tokens, strict=True)]


def warn(message: str) -> None:
    """Warn of something that does not end the run."""
    warnings.warn(message, EnsembleWarning, stacklevel=3)


def as_model(chat: bool, settings: dict[str, Any]) -> Model:
    """Make the ensemble that reads these questions; nothing is loaded."""
    return ChatEnsemble(**settings) if chat else EnsembleLLM(**settings)
