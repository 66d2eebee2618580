"""``contexts=``: a text that one member alone reads before the prompt.

Raw prompts: the text and the prompt are one text, with nothing between them; conversations: the
text stands in the member's system turn (``chat/view.py``). The empty text is no context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from langchain_ensemble.errors import ConfigError, ContextError, unknown_name

Contexts = Mapping[str, str] | None
"""Member → what it alone reads; None: nobody reads anything of their own."""

T = TypeVar("T")


def check_contexts(contexts: Contexts, names: Sequence[str]) -> None:
    """Refuse contexts of members that are not there.

    Args:
        contexts: As in a request.
        names: The members' names.

    Raises:
        ConfigError: An unknown name.
    """
    for name in contexts or ():
        if name not in names:
            raise ConfigError(unknown_name("member in contexts", name, names))


def no_context(
    roles: Mapping[str, Any], contexts: Contexts, systems: Mapping[str, str | None]
) -> str | None:
    """Say that context-aware decoding has no context to be aware of.

    Args:
        roles: Its settings.
        contexts: As in a request.
        systems: Member → its own system prompt, where that is read.

    Returns:
        What is to be warned of; None: its two members read different texts.
    """
    reader, bare = str(roles["with_context"]), str(roles["without"])
    mine, others = ((systems.get(n) or "", context_of(contexts, n)) for n in (reader, bare))
    if mine != others:
        return None
    return (
        f"fusion='context_aware' weighs more what a context adds, but members {reader!r} "
        f"(with_context) and {bare!r} (without) read the same text; give the context to the first "
        f"alone: contexts={{{reader!r}: text}}"
    )


def context_of(contexts: Contexts, name: str) -> str:
    """What a member alone reads; empty: nothing."""
    return (contexts or {}).get(name, "")


def read_after(context: str, prompt: str, read: Callable[[str], T]) -> T:
    """Read a raw prompt after a member's own text.

    Args:
        context: The member's text, empty: none.
        prompt: The prompt.
        read: Turns a raw text into what the member reads.

    Returns:
        What ``read`` gives of both, one after the other.

    Raises:
        ContextError: They do not fit the member together.
    """
    try:
        return read(context + prompt)
    except ContextError as error:
        if not context:
            raise
        raise counted(error, context) from None


def counted(error: ContextError, context: str) -> ContextError:
    """Say that a member's own text is a part of what does not fit it.

    Args:
        error: What does not fit.
        context: The member's text, not empty.

    Returns:
        The same error, with a sentence more.
    """
    return ContextError(
        f"{error}. The {len(context)} characters that contexts= gives this member count",
        member=error.member,
        length=error.length,
        limit=error.limit,
    )
