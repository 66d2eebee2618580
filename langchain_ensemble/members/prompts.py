"""Raw prompts: text to ids as Hugging Face does it, and what is refused.

The tokenizer's own call decides, control tokens included. Two departures: an end token that a
tokenizer appends (``add_eos_token``, T5) is dropped, since no answer
follows the end of the text; and an empty prompt is one token, bos or else the
end-of-document token.
"""

from __future__ import annotations

from typing import Any

from langchain_ensemble.errors import ConfigError, ContextError
from langchain_ensemble.members.base import MemberPrompt

DOCUMENT_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<|end_of_document|>",
    "</s>",
    "<eos>",
)
"""Spellings of end-of-document tokens; a chat tokenizer's ``eos_token`` may only end a turn."""


def raw_prompt(name: str, tokenizer: Any, text: str, context: int | None) -> MemberPrompt:
    """Tokenise a raw prompt.

    Args:
        name: Member's name, for messages.
        tokenizer: A transformers tokenizer.
        text: The prompt; special-token text is parsed as Hugging Face parses it.
        context: Positions the model has, None when unknown.

    Returns:
        The prompt's ids; ``text_start`` only for the empty prompt.

    Raises:
        ConfigError: Lone surrogates, a prompt longer than the context, or an empty prompt for a
            tokenizer that has neither a bos nor an end-of-document token.
    """
    check_text(name, text)
    if not text:
        return MemberPrompt(ids=(start_id(name, tokenizer),), text_start=True)
    ids = [int(i) for i in tokenizer(text, verbose=False)["input_ids"]]
    ids = ids[: len(ids) - added_end(tokenizer, ids)]
    if not ids:
        return MemberPrompt(ids=(start_id(name, tokenizer),), text_start=True)
    if context is not None and len(ids) > context:
        raise ContextError(
            f"prompt of {len(ids)} tokens is longer than the context of member {name!r}, "
            f"{context} positions; shorten it to {context} tokens less what the answer needs",
            member=name,
            length=len(ids),
            limit=context,
        )
    return MemberPrompt(ids=tuple(ids))


def check_text(name: str, text: str) -> None:
    """Refuse text that no UTF-8 can hold.

    Raises:
        ConfigError: A lone surrogate, with its position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"prompt for member {name!r} has a lone surrogate, U+{ord(text[error.start]):04X}, at "
            f"character {error.start}; it is no text. Remove it, or decode the source with "
            "errors='replace'"
        ) from error


def start_id(name: str, tokenizer: Any) -> int:
    """The id that stands for an empty prompt: bos, else end-of-document.

    Raises:
        ConfigError: The tokenizer has neither.
    """
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    added = tokenizer.get_added_vocab()
    for spelling in DOCUMENT_ENDS:
        if spelling in added:
            return int(added[spelling])
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    raise ConfigError(
        f"prompt is empty, and the tokenizer of member {name!r} has no bos and no end-of-document "
        "token to start from; give a prompt of at least one character"
    )


def added_end(tokenizer: Any, ids: list[int]) -> int:
    """Count the end tokens that the tokenizer itself appended to ``ids`` (0 or 1)."""
    end = tokenizer.eos_token_id
    if end is None or not ids or ids[-1] != end:
        return 0
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return int(len(full) > len(bare) and full[-1] == end and (not bare or bare[-1] != end))
