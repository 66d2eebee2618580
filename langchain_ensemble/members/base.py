"""What the engine asks of a member, and nothing about how it is done.

A :class:`LoadedMember` is weights plus a view; a :class:`MemberSession` is its KV cache for some
rows of one request. Local models, models on other machines that give only their best ids, and
encoder-decoder models all fit: prefill may encode, ``submit`` may start work elsewhere, and a
prompt may carry private ids (a reasoning model's thinking) that are no bytes of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemberPrompt:
    """One row's prompt for one member, made by its view.

    Attributes:
        ids: Ids the decoder reads before the answer (for an encoder-decoder: its start).
        encoder_ids: Ids for an encoder, if the member has one.
        text_start: Whether the answer begins at the start of the text (empty prompt): a
            dummy-prefix tokenizer's leading space is then no byte of the answer.
    """

    ids: tuple[int, ...]
    encoder_ids: tuple[int, ...] | None = None
    text_start: bool = False


Processor = Callable[[Tensor, Tensor], Tensor]
"""``(ids [1, T], scores [1, S]) -> scores [1, S]``: a sampling processor of transformers."""


class Pending(Protocol):
    """Work that was submitted; only the session that gave it can collect it."""


class MemberSession(Protocol):
    """One member's KV cache over B rows. Rows are ragged: each has its own length.

    ``logits`` are always float32 on the member's device. Pads never occupy a cache position.
    """

    lengths: list[int]  # tokens in the cache, one a row
    chunk: int | None
    """Columns of one forward at most; any of its beginnings can be copied and gone on with. None:
    the state cannot be rolled back, a prompt is read at once (``compact`` is never called)."""

    def prefill(self, prompts: Sequence[MemberPrompt]) -> Tensor:
        """Read the prompts into empty rows; returns the logits after the last id, [B, V_i]."""

    def submit(self, ids: Sequence[Sequence[int]], keep: int | None = 1) -> Pending:
        """Start one forward over 0..q new ids a row; an empty list leaves its row alone.

        Args:
            ids: New ids of each row.
            keep: How many last positions of each row are wanted; None: all q.
        """

    def collect(self, pending: Pending) -> Tensor:
        """Logits [B, keep, V_i], right-aligned: ``[:, -1]`` belongs to the last new id of a row.

        Positions before a row's first new id hold anything; so does a row without new ids.
        """

    def step(self, ids: Sequence[Sequence[int]], keep: int | None = 1) -> Tensor:
        """``collect(submit(ids, keep))``."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll every row back to a length not above its present one."""

    def mark(self) -> Any:
        """Remember the lengths."""

    def rollback(self, mark: Any) -> None:
        """Return to a mark (rows must be the same)."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop, reorder or repeat rows."""

    def fork(self, rows: Sequence[int], upto: int | None = None) -> MemberSession:
        """A second session over copies of some rows; this one stays as it is.

        Args:
            rows: Row numbers, with repeats.
            upto: How many ids of each row at most; only where ``chunk`` is given.
        """

    def compact(self, row: int, length: int) -> MemberSession:
        """The beginning of one row in a cache of its own; this session is used up."""

    @property
    def nbytes(self) -> int:
        """What the cache occupies."""

    def close(self) -> None:
        """Free the cache."""


class LoadedMember(Protocol):
    """Weights and a view, ready to run."""

    name: str
    tokenizer: Any
    """The transformers tokenizer."""
    logits_width: int
    context: int | None
    """Positions the model has, None when unknown."""
    device: torch.device
    dtype: torch.dtype
    gives: Literal["dense", "top-k"]
    end_ids: tuple[int, ...]
    """Ids that end a turn by tokenizer and generation config (roles are added by ``vocab``)."""
    weights_hash: str
    """Identity of the weights by content: Hub commit, or the hash of the files."""
    kv_bytes: int
    """Bytes that a token takes in the KV cache; 0 where there is none."""

    def prompt(self, text: str) -> MemberPrompt:
        """Tokenise a raw prompt as Hugging Face does (control tokens included).

        Raises:
            ConfigError: The prompt does not fit the context, or is empty and the member has
                neither a bos nor an end-of-document token.
        """

    def session(self) -> MemberSession:
        """A fresh, empty session."""

    def embeddings(self) -> Tensor:
        """Input embeddings, [rows, D], as stored."""

    @property
    def chat_template(self) -> str | None:
        """The view's chat template, None for a base model."""

    @property
    def system(self) -> str | None:
        """The view's system prompt."""

    def close(self) -> None:
        """Give the weights back; the last member that holds them frees them."""
