"""Which ids are control tokens, and what they are for.

A control token has a role, and the role wins over its spelling. No single source says which they
are: yi's ``<|im_end|>`` is not flagged special, phi-3's ``<|end|>`` is missing from
``all_special_ids``, while pythia's runs of spaces and yi's ``<h1>`` and ``0`` are added tokens and
plain text. So a token is control if one of these says so:

1. the tokenizer names it (bos, eos, ...), a generation config ends on it, or its model emits it
   for what it cannot spell;
2. it is added and flagged special (except a padding token borrowed from ordinary text);
3. it is added and looks like a marker: ``<|...|>``, or a bracketed name from the table below, or a
   bracketed name (no HTML element) that the chat template writes.

Byte tokens (``<0x0A>``) are text. Everything else that is added is text too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from langchain_ensemble.vocab.backend import Backend, read_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Role(StrEnum):
    """What a control token is for."""

    BOS = "bos"
    END = "end"
    PAD = "pad"
    UNK = "unk"
    TURN = "turn"
    THINK = "think"
    TOOL = "tool"
    OTHER = "other"


_TABLE = """
end:   /s eos eos_token endoftext end_of_text eot eot_id eom_id eod im_end end end_of_turn
end:   end_of_turn_token end_of_sentence end_of_utterance return
bos:   s bos bos_token startoftext begin_of_text begin_of_sentence
unk:   unk unknown
pad:   pad pad_token padding finetune_right_pad_id
turn:  im_start im_sep start_header_id end_header_id inst /inst user assistant system human bot
turn:  developer start_of_turn start_of_turn_token start_of_role end_of_role user_token
turn:  chatbot_token system_token start message channel constrain
other: cls sep mask fim_prefix fim_middle fim_suffix fim_pad filename reponame repo_name file_sep
other: gh_stars issue_start issue_comment issue_closed jupyter_start jupyter_text jupyter_code
other: jupyter_output jupyter_script empty_output commit_before commit_msg commit_after
"""
_NAMES = {
    name: Role(role)
    for role, names in (line.split(":") for line in _TABLE.strip().splitlines())
    for name in names.split()
}
"""Names inside the brackets, in lower case, by what they are for."""

_FAMILIES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"think|thought|reasoning"), Role.THINK),
    (re.compile(r"tool|function|execute|python_tag|plugin|interpreter|ipython"), Role.TOOL),
    (
        re.compile(r"(unused|reserved|placeholder|extra_id|control|reference_doc|dummy).*\d"),
        Role.OTHER,
    ),
)
_HTML = re.compile(
    r"a|b|br|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|span|strong|sub|sup|table|tbody|td|th|thead|"
    r"tr|u|ul"
)
_MARKER = re.compile(r"<\|.+\|>|<｜.+｜>|<\|.+>|<.+\|>", re.DOTALL)
_BRACKETED = re.compile(r"<[^<>\s][^<>]*>|\[[^\[\]\s][^\[\]]*\]")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def token_roles(
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int] = (),
    chat_template: str | None = None,
) -> list[Role | None]:
    """The role of every id.

    Args:
        tokenizer: A fast transformers tokenizer.
        end_ids: Ids that end a turn by the generation config.
        chat_template: The template a member really uses; None takes the tokenizer's own.

    Returns:
        One entry an id, up to the highest; None for ordinary text, byte tokens and holes.

    Raises:
        VocabularyError: The tokenizer has no fast backend.
    """
    return roles_of_ids(read_backend(tokenizer), tokenizer, end_ids, chat_template)


def roles_of_ids(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int] = (),
    chat_template: str | None = None,
) -> list[Role | None]:
    """The role of every id of a tokenizer that was taken apart.

    Args:
        backend: The tokenizer's parts.
        tokenizer: The tokenizer, asked which tokens it names.
        end_ids: Ids that end a turn by the generation config.
        chat_template: As in :func:`token_roles`.

    Returns:
        One entry an id.
    """
    template = _template(tokenizer, chat_template)
    spelled = {token.content for token in backend.added.values()}
    roles: list[Role | None] = [None] * backend.size
    for added_id, token in backend.added.items():
        role = _marker_role(token.content, template)
        if role is None and token.special and not _BYTE.fullmatch(token.content):
            role = Role.OTHER
        if token.content == "<|end|>" and "<|return|>" in spelled:
            role = Role.TURN  # there it ends a message inside the answer
        roles[added_id] = role
    for named_id, role in _named(backend, tokenizer):
        if roles[named_id] in (None, Role.OTHER):
            roles[named_id] = None if role is Role.PAD and _plain(backend, named_id) else role
    for end_id in _ends(tokenizer, end_ids):
        if 0 <= end_id < backend.size:
            roles[end_id] = Role.END
    return roles


def _template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> str:
    template: Any = given or getattr(tokenizer, "chat_template", None) or ""
    if isinstance(template, dict):
        return "\n".join(str(template[name]) for name in sorted(template))
    return str(template)


def _marker_role(content: str, template: str) -> Role | None:
    """The role that a spelling shows, None where it shows none."""
    if _BYTE.fullmatch(content):
        return None
    sure = _MARKER.fullmatch(content) is not None
    if not sure and _BRACKETED.fullmatch(content) is None:
        return None
    name = re.sub(r"[\s▁-]+", "_", content[1:-1].strip("|｜@").strip().lower())
    if content == "<|endofprompt|>":
        return Role.OTHER
    if name in _NAMES:
        return _NAMES[name]
    for family, role in _FAMILIES:
        if family.search(name):
            return role
    if sure:
        return Role.OTHER
    written = content in template and not _HTML.fullmatch(name.strip("/"))
    return Role.TURN if written else None


def _ends(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> list[int]:
    eos: Any = getattr(tokenizer, "eos_token_id", None)
    named = list(eos) if isinstance(eos, (list, tuple)) else [eos]
    return [i for i in [*named, *end_ids] if i is not None]


def _named(backend: Backend, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, Role]]:
    """Ids that the tokenizer names, the most telling role first."""
    unk = None if backend.unk_piece is None else backend.rust.token_to_id(backend.unk_piece)
    named: list[tuple[Any, Role]] = [
        (getattr(tokenizer, "bos_token_id", None), Role.BOS),
        (unk, Role.UNK),
        (getattr(tokenizer, "unk_token_id", None), Role.UNK),
        (getattr(tokenizer, "pad_token_id", None), Role.PAD),
    ]
    for name in ("cls", "sep", "mask"):
        named.append((getattr(tokenizer, f"{name}_token_id", None), Role.OTHER))
    return [(i, role) for i, role in named if i is not None and 0 <= i < backend.size]


def _plain(backend: Backend, token_id: int) -> bool:
    """Whether an id is a word of the vocabulary (``!``), perhaps borrowed for padding."""
    piece = backend.pieces[token_id]
    return piece is not None and not (_MARKER.fullmatch(piece) or _BRACKETED.fullmatch(piece))
