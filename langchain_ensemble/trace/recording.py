"""One answer's trace: plain data, as JSON and back, as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from langchain_ensemble.confidence import (
    Confidence,
    Span,
    sentences,
    span_confidence,
    texts_of,
)
from langchain_ensemble.decoding.records import TokenRecord, TokenTrace, Wish
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.trace.page import page
from langchain_ensemble.trace.summary import decider

FORMAT = 1
"""Version of the JSON."""


@dataclass(frozen=True)
class Trace:
    """How one answer came about, token by token.

    Attributes:
        model_name: The ensemble's name.
        members: Names of those that had a voice, main first.
        prompt: What was asked; of a conversation, its turns.
        text: The answer.
        tokens: The decode steps, each with its ``trace``; END is one.
        finish_reason: As in the answer's metadata.
        confidence: How sure the members are of the answer.
    """

    model_name: str
    members: tuple[str, ...]
    prompt: str
    text: str
    tokens: tuple[TokenRecord, ...]
    finish_reason: str
    confidence: Confidence

    @property
    def seconds(self) -> list[float]:
        """How long each token took; the first with everything before it, prompts too."""
        times = [0.0, *(0.0 if t.trace is None else t.trace.at for t in self.tokens)]
        return [max(0.0, b - a) for a, b in pairwise(times)]

    @property
    def texts(self) -> list[str]:
        """What each token adds to the text; a character belongs to the token that completes it."""
        return texts_of(self.tokens)

    @property
    def deciders(self) -> list[str | None]:
        """Who decided each token: the voice whose weight times probability of it was largest."""
        return [decider(token) for token in self.tokens]

    def spans(self, spans: Sequence[tuple[int, int]] | None = None) -> list[Span]:
        """Say how sure the members are of parts of the answer.

        Args:
            spans: (start, end) in characters of ``text``; None: its sentences.

        Returns:
            One entry a span that holds a token.
        """
        wanted = sentences(self.text) if spans is None else spans
        return span_confidence(self.text, self.tokens, wanted)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON."""
        return {
            "format": FORMAT,
            "model_name": self.model_name,
            "members": list(self.members),
            "prompt": self.prompt,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "confidence": vars(self.confidence).copy(),
            "tokens": [_token(token) for token in self.tokens],
        }

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> Trace:
        """Read what :meth:`to_dict` gave.

        Raises:
            ConfigError: It is something else, or of another version.
        """
        if not isinstance(read, Mapping):
            raise ConfigError(f"a trace is a JSON object; this is a {type(read).__name__}")
        if read.get("format") != FORMAT:
            raise ConfigError(
                f"this is no trace of format {FORMAT} (format is {read.get('format')!r}); "
                "write it again with this version of the package"
            )
        try:
            return cls(
                read["model_name"],
                tuple(read["members"]),
                read["prompt"],
                read["text"],
                tuple(_read_token(token) for token in read["tokens"]),
                read["finish_reason"],
                Confidence(**read["confidence"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this trace is damaged: {error!r}") from error

    def to_json(self) -> str:
        """Give :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what :meth:`to_json` gave.

        Raises:
            ConfigError: It is something else.
        """
        try:
            read = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"this trace is no JSON: {error}") from error
        return cls.from_dict(read)

    def to_html(self) -> str:
        """Give one self-contained page: no network, dark and light, for mouse, keyboard, touch."""
        return page(self)

    def save(self, path: str | Path) -> None:
        """Write the trace: a page where the name ends in ``.html``, else JSON.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            ConfigError: It cannot be written there.
        """
        place = Path(path).expanduser()
        is_page = place.suffix.lower() in {".html", ".htm"}
        try:
            place.write_text(self.to_html() if is_page else self.to_json(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write the trace to {str(path)!r}: {error.strerror or error}"
            ) from error

    def _repr_html_(self) -> str:
        """The page inside a notebook's cell."""
        inside = escape(self.to_html(), quote=True)
        return (
            f'<iframe srcdoc="{inside}" sandbox="allow-scripts" title="Trace of an answer" '
            'style="width:100%;height:34rem;border:1px solid #8884;border-radius:6px"></iframe>'
        )


Key = str | dict[str, str] | None
"""A key's bytes as JSON: its text, ``{"hex": ...}`` where it is none, None for END."""


def _key(data: bytes) -> Key:
    try:
        return data.decode() if data else None
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _read_key(key: Key) -> bytes:
    if key is None:
        return b""
    return key.encode() if isinstance(key, str) else bytes.fromhex(key["hex"])


def _wishes(wishes: Sequence[Wish]) -> list[list[Any]]:
    return [[_key(data), probability] for data, probability in wishes]


def _read_wishes(read: Sequence[Sequence[Any]]) -> tuple[Wish, ...]:
    return tuple((_read_key(key), float(probability)) for key, probability in read)


def _token(token: TokenRecord) -> dict[str, Any]:
    made = {**vars(token), "bytes": _key(token.bytes), "members": dict(token.members)}
    seen = token.trace
    made["trace"] = seen and {
        "wishes": {name: _wishes(own) for name, own in seen.wishes.items()},
        "fused": _wishes(seen.fused),
        "weights": dict(seen.weights),
        "at": seen.at,
    }
    return made


def _read_token(read: Mapping[str, Any]) -> TokenRecord:
    seen = read["trace"]
    trace = seen and TokenTrace(
        {name: _read_wishes(own) for name, own in seen["wishes"].items()},
        _read_wishes(seen["fused"]),
        dict(seen["weights"]),
        float(seen["at"]),
    )
    return TokenRecord(**{**read, "bytes": _read_key(read["bytes"]), "trace": trace})
