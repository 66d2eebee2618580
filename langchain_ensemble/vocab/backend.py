"""Reads a transformers tokenizer into plain data: its parts, its flags, its pieces by id.

Knows the Rust backend (``tokenizers.Tokenizer``) that every fast tokenizer holds. Must not know
what a piece means: that is :mod:`token_bytes` and :mod:`roles`. A tokenizer without that backend
(slow, SentencePiece-only, mistral-common's) is refused here, because its ids cannot be turned into
bytes with certainty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer
from tokenizers import models as rust_models

from langchain_ensemble.errors import VocabularyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Backend:
    """One tokenizer, taken apart.

    Attributes:
        name: How messages call it.
        rust: The Rust tokenizer; never changed by this package.
        normalizer: Its JSON, or None.
        pre_tokenizer: Its JSON, or None.
        decoder: Its JSON, or None.
        kind: ``"BPE"``, ``"Unigram"``, ``"WordPiece"`` or ``"WordLevel"``.
        flags: The model's settings (``unk_token``, ``byte_fallback``, ``ignore_merges``, ...).
        pieces: The model's own string of every id, None where it has none.
        added: Added tokens by id, ascending.
        size: Highest id + 1, added tokens included.
    """

    name: str
    rust: Tokenizer
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any] | None
    kind: str
    flags: dict[str, Any]
    pieces: list[str | None]
    added: dict[int, AddedToken]
    size: int

    @property
    def unk_piece(self) -> str | None:
        """The piece the model emits for what it cannot spell."""
        if self.kind == "Unigram":
            unk_id = self.flags.get("unk_id")
            return None if unk_id is None else self.pieces[unk_id]
        unk: str | None = self.flags.get("unk_token")
        return unk


_BPE_FLAGS = (
    "unk_token",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
)


def read_backend(tokenizer: PreTrainedTokenizerBase) -> Backend:
    """Take a fast tokenizer apart.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        Its parts.

    Raises:
        VocabularyError: It has no Rust backend, so its vocabulary cannot be read exactly.
    """
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(rust, Tokenizer):
        kind = type(tokenizer).__name__
        lossy = "mistral" in kind.lower() and "common" in type(tokenizer).__module__
        why = (
            "mistral-common does not give the bytes of every id"
            if lossy
            else "it has no tokenizer.json backend, and only that gives the bytes of every id"
        )
        raise VocabularyError(
            f"tokenizer {name!r} ({kind}) cannot be aligned with others: {why}. "
            f"Load it as a fast tokenizer (a folder with tokenizer.json)."
        )
    parts = json.loads(_shell(rust))
    pieces_of = rust.get_vocab(with_added_tokens=False)
    added = dict(sorted(rust.get_added_tokens_decoder().items()))
    size = max([*pieces_of.values(), *added, -1]) + 1
    pieces: list[str | None] = [None] * size
    for piece, piece_id in pieces_of.items():
        pieces[piece_id] = piece
    model = rust.model
    kind = type(model).__name__
    if kind == "BPE":
        flags = {flag: getattr(model, flag) for flag in _BPE_FLAGS}
    else:
        flags = {
            flag: value
            for flag, value in json.loads(Tokenizer(model).to_str())["model"].items()
            if flag not in ("vocab", "type")
        }
    return Backend(
        name,
        rust,
        parts["normalizer"],
        parts["pre_tokenizer"],
        parts["decoder"],
        kind,
        flags,
        pieces,
        added,
        size,
    )


def _shell(rust: Tokenizer) -> str:
    """The JSON of the parts without the model, whose merges take most of the time to read."""
    shell = Tokenizer(rust_models.BPE())
    if rust.normalizer is not None:
        shell.normalizer = rust.normalizer
    if rust.pre_tokenizer is not None:
        shell.pre_tokenizer = rust.pre_tokenizer
    if rust.decoder is not None:
        shell.decoder = rust.decoder
    return str(shell.to_str())


def rebuild(
    rust: Tokenizer, normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None
) -> Tokenizer:
    """A second tokenizer over the same model with other parts, no added tokens, no dropout.

    Args:
        rust: The tokenizer whose model is used (shared, not copied, unless it has dropout).
        normalizer: JSON of the new normalizer, or None.
        pre_tokenizer: JSON of the new pre-tokenizer, or None.

    Returns:
        The new tokenizer.
    """
    model = rust.model
    if getattr(model, "dropout", None):
        whole = json.loads(Tokenizer(model).to_str())
        whole["model"]["dropout"] = None
        model = Tokenizer.from_str(json.dumps(whole)).model
    parts = json.loads(Tokenizer(rust_models.BPE()).to_str())
    parts["normalizer"], parts["pre_tokenizer"] = normalizer, pre_tokenizer
    shell = Tokenizer.from_str(json.dumps(parts))
    built = Tokenizer(model)
    if normalizer is not None:
        built.normalizer = shell.normalizer
    if pre_tokenizer is not None:
        built.pre_tokenizer = shell.pre_tokenizer
    return built


def steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with nested sequences laid flat.

    Args:
        part: Its JSON, or None.

    Returns:
        The steps in order.
    """
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(part[k] for k in ("normalizers", "pretokenizers", "decoders") if k in part)
    return [step for p in inner for step in steps(p)]
