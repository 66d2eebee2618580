"""Our errors under the names by which LangChain's callers catch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelRateLimitError,
    OutputParserException,
)

from langchain_ensemble.errors import ConfigError, ContextError, OverloadedError, UnfinishedError


class PromptTooLongError(ContextError, ContextOverflowError):
    """A conversation does not fit a member; summarising middleware catches it and retries."""


class TooManyRequestsError(OverloadedError, ModelRateLimitError):
    """As many requests wait as may; middleware and callers that retry find it retryable."""


class InvalidRequestError(ConfigError, ModelInvalidRequestError):
    """A request holds something that this model cannot read."""


class UnknownModelError(ConfigError, ModelNotFoundError):
    """``model=`` names no member."""


class UnfinishedOutputError(UnfinishedError, OutputParserException):
    """A structured answer was cut before it was a whole object; never parsed in part."""

    def __init__(self, message: str, partial: str = "") -> None:
        """Keep the partial answer, also where LangChain's parsers look for it."""
        UnfinishedError.__init__(self, message, partial)
        self.args = (message,)  # without the link that LangChain appends
        self.llm_output = partial
        self.observation, self.send_to_llm = None, False


@contextmanager
def translated() -> Iterator[None]:
    """Raise what LangChain has a name for under that name too.

    A prompt that does not fit is its ``ContextOverflowError``, a full queue its
    ``ModelRateLimitError``.
    """
    try:
        yield
    except (ContextOverflowError, ModelRateLimitError):
        raise
    except OverloadedError as error:
        raise TooManyRequestsError(str(error), waiting=error.waiting, limit=error.limit) from error
    except ContextError as error:
        raise PromptTooLongError(
            str(error), member=error.member, length=error.length, limit=error.limit
        ) from error
