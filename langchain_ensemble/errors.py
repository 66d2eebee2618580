"""The exception tree, and the one way to say that a name is unknown.

    EnsembleError
    ├── ConfigError (ValueError)          what the caller asked for cannot be
    │   └── ContextError                  a prompt does not fit a member, with the numbers
    ├── VocabularyError (ValueError)      these members' tokenizers do not fit
    ├── MemberError (RuntimeError)        one member cannot be found, loaded or run
    │   ├── MemoryLimitError              it does not fit, with the numbers
    │   └── DownloadError                 the network failed on the way; trying again may help
    ├── CacheError (RuntimeError)         the disk cache cannot be used
    ├── OverloadedError (RuntimeError)    too many requests wait; trying again later may help
    ├── DeadlineError (TimeoutError)      ``timeout`` passed; carries what was decoded
    ├── AbstainedError (ValueError)       the members are not sure enough; carries the answer
    └── UnfinishedError (ValueError)      a structured answer was cut; carries what was decoded

Every message says who, what is, what was needed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class EnsembleError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(EnsembleError, ValueError):
    """What the caller asked for is contradictory, unknown or impossible."""


class ContextError(ConfigError):
    """A prompt does not fit a member's context.

    Attributes:
        member: The member's name.
        length: Tokens of the prompt, in the member's ids.
        limit: Tokens that the member can hold.
    """

    def __init__(self, message: str, *, member: str = "", length: int = 0, limit: int = 0) -> None:
        """Keep the numbers beside the message."""
        super().__init__(message)
        self.member, self.length, self.limit = member, length, limit


class VocabularyError(EnsembleError, ValueError):
    """Two members' vocabularies do not fit the fusion that was asked for."""


class MemberError(EnsembleError, RuntimeError):
    """One member cannot be found, loaded or run."""


class MemoryLimitError(MemberError):
    """A member, a cache or a table does not fit the device."""


class DownloadError(MemberError):
    """A download broke off; nothing half-written is used, and trying again may help."""


class CacheError(EnsembleError, RuntimeError):
    """The disk cache cannot be read or written."""


class OverloadedError(EnsembleError, RuntimeError):
    """A request would have to wait, and as many wait as may.

    Attributes:
        waiting: Requests that wait.
        limit: ``max_queue``.
    """

    def __init__(self, message: str, *, waiting: int = 0, limit: int = 0) -> None:
        """Keep the numbers beside the message."""
        super().__init__(message)
        self.waiting, self.limit = waiting, limit


class DeadlineError(EnsembleError, TimeoutError):
    """``timeout`` seconds passed before the answer was complete.

    Attributes:
        partial: What was decoded so far, one text per answer.
    """

    def __init__(self, message: str, partial: list[str] | None = None) -> None:
        """Keep the partial answers beside the message."""
        super().__init__(message)
        self.partial: list[str] = list(partial or [])


class AbstainedError(EnsembleError, ValueError):
    """The members are less sure of an answer than ``abstain_below``.

    Attributes:
        answer: The answer that was decoded.
        confidence: How sure they are, in [0, 1].
        limit: ``abstain_below``.
    """

    def __init__(
        self, message: str, *, answer: str = "", confidence: float = 0.0, limit: float = 0.0
    ) -> None:
        """Keep the answer and the numbers beside the message."""
        super().__init__(message)
        self.answer, self.confidence, self.limit = answer, confidence, limit


class UnfinishedError(EnsembleError, ValueError):
    """An answer that has to obey a grammar was cut before it was complete.

    Attributes:
        partial: What was decoded so far; no valid object.
    """

    def __init__(self, message: str, partial: str = "") -> None:
        """Keep the partial answer beside the message."""
        super().__init__(message)
        self.partial = partial


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest known one and the whole list.

    Args:
        kind: What the name was meant to be, for example ``"fusion"``.
        name: What the caller wrote.
        known: The names that exist.

    Returns:
        One sentence for an error message.
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(repr(n) for n in names) or "none"
    return f"unknown {kind} {name!r}.{hint} Known: {listed}."


class EnsembleWarning(UserWarning):
    """Something that the caller should know, and that is no error."""


def one_line(owner: str, problems: Iterable[Mapping[str, Any]]) -> str:
    """Say in one line what a validation found, with the values, but never an access token.

    Args:
        owner: Class name for the message.
        problems: What pydantic's ``ValidationError.errors()`` gives.

    Returns:
        One line.
    """
    parts = []
    for item in problems:
        where = ".".join(str(p) for p in item["loc"])
        message = str(item["msg"]).removeprefix("Value error, ")
        hidden = "token" in where or item["type"] == "missing"  # the input is all settings then
        value = "" if hidden else f"={item['input']!r}"
        parts.append(f"{where}{value}: {message}" if where else message)
    return f"{owner}: " + "; ".join(parts)
