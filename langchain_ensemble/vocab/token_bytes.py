"""id -> bytes, once per tokenizer, by reading what the tokenizer's own decoder does to one piece.

A token is its bytes. The decoder is a pipeline of named steps; each is interpreted here piece by
piece, and a step that rewrites text across pieces in a way that gives a piece no bytes of its own
is refused. What the decoder does at the start of a text (dropping a dummy prefix) belongs to the
text, not to a piece, and is left out. Added tokens are their content, verbatim: the Rust decoder
would read deepseek-llm's added ``ø`` as the raw byte F8, which is not what the encoder matched.

Must not know about control tokens (:mod:`roles`) or about encoding (:mod:`encoder`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, decoders

from langchain_ensemble.errors import VocabularyError
from langchain_ensemble.vocab.backend import Backend, read_backend, rebuild, steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Stage = Callable[[str], "str | bytes"]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes of every id.

    Control tokens have the bytes of their spelling here; their roles are a second table
    (:func:`langchain_ensemble.vocab.roles.token_roles`), and roles win.

    Args:
        tokenizer: A fast transformers tokenizer.

    Returns:
        One entry an id, up to the highest; None for ids that no text can produce.

    Raises:
        VocabularyError: The tokenizer has no fast backend, or its decoder gives pieces no bytes.
    """
    return bytes_of_ids(read_backend(tokenizer))


def bytes_of_ids(backend: Backend) -> list[bytes | None]:
    """The bytes of every id of a tokenizer that was taken apart.

    Args:
        backend: The tokenizer's parts.

    Returns:
        One entry an id; None for holes and for pieces that decode to nothing.

    Raises:
        VocabularyError: Its decoder gives pieces no bytes.
    """
    to_bytes = _reader(backend)
    table: list[bytes | None] = [
        None if piece is None else to_bytes(piece) or None for piece in backend.pieces
    ]
    for added_id, token in backend.added.items():
        if backend.pieces[added_id] is None:
            table[added_id] = token.content.encode() or None
    return table


def byte_pieces(backend: Backend) -> list[bool]:
    """Which ids are byte tokens (``<0x41>``) of a fallback.

    Args:
        backend: The tokenizer's parts.

    Returns:
        One flag an id.
    """
    if not _has_byte_fallback(backend):
        return [False] * backend.size
    return [p is not None and _BYTE_PIECE.fullmatch(p) is not None for p in backend.pieces]


def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: a printable character for each byte.

    Returns:
        256 characters and their bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable}
    alphabet.update({chr(256 + n): b for n, b in enumerate(rest)})
    return alphabet


def _has_byte_fallback(backend: Backend) -> bool:
    decoded = any(step["type"] == "ByteFallback" for step in _decoder_steps(backend))
    return decoded or bool(backend.flags.get("byte_fallback"))


def _reader(backend: Backend) -> Callable[[str], bytes]:
    stages = _stages(backend)
    byte_fallback = _has_byte_fallback(backend)

    def to_bytes(piece: str) -> bytes:
        if byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        value: str | bytes = piece
        for stage in stages:
            if isinstance(value, bytes):
                break
            value = stage(value)
        return value if isinstance(value, bytes) else value.encode()

    return to_bytes


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    """The decoder's steps; where there is no decoder, the inverse of what the encoder does."""
    if backend.decoder is not None:
        return steps(backend.decoder)
    encoder_steps = steps(backend.normalizer) + steps(backend.pre_tokenizer)
    for step in encoder_steps:
        if step["type"] == "ByteLevel":
            return [{"type": "ByteLevel"}]
        if step["type"] == "Metaspace":
            return [step]
        if step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            return [
                {"type": "Replace", "pattern": {"String": step["content"]}, "content": " "},
                {"type": "ByteFallback"},
            ]
    if backend.kind in ("WordPiece", "WordLevel"):  # transformers joins such pieces with spaces
        return [{"type": "WordPiece", "prefix": backend.flags.get("continuing_subword_prefix")}]
    probe = " a  b.c\n1 2 "
    pre_tokenizer = rebuild(backend.rust, None, backend.pre_tokenizer).pre_tokenizer
    kept = [] if pre_tokenizer is None else pre_tokenizer.pre_tokenize_str(probe)
    if pre_tokenizer is None or "".join(piece for piece, _ in kept) == probe:
        return [{"type": "Fuse"}]
    raise VocabularyError(
        f"tokenizer {backend.name!r} has no decoder and its pre-tokenizer drops or rewrites text, "
        f"so its pieces have no bytes. Give its tokenizer.json a decoder."
    )


def _stages(backend: Backend) -> list[Stage]:
    stages: list[Stage] = []
    fused = False
    for step in _decoder_steps(backend):
        if step["type"] == "Fuse":
            fused = True
            continue
        stage = _stage(step, fused)
        if stage is None:
            raise VocabularyError(
                f"tokenizer {backend.name!r} decodes with a step that gives single pieces no "
                f"bytes: {step!r}. Known: ByteFallback, ByteLevel, BPEDecoder, Fuse, Metaspace, "
                f"Replace, Strip, WordPiece."
            )
        stages.append(stage)
    return stages


def _stage(step: dict[str, Any], fused: bool) -> Stage | None:
    """One decoder step as a function of one piece, None where it is no such function."""
    kind = step["type"]
    if kind == "ByteLevel":
        return _byte_level(byte_alphabet())
    if kind == "ByteFallback":
        return _same  # read before the stages
    if kind == "Metaspace":
        return _replace(step["replacement"], " ")
    if kind == "WordPiece":
        return _word_piece(step.get("prefix"))
    if kind == "BPEDecoder":
        return _replace(step["suffix"], " ") if step["suffix"] else _same
    if kind == "Strip":  # after Fuse it strips the text's ends, not a piece's
        return _same if fused else _strip(step["content"], step["start"], step["stop"])
    if kind == "Replace":
        return _replace_step(step["pattern"], step["content"], fused)
    return None


def _same(piece: str) -> str:
    return piece


def _byte_level(alphabet: dict[str, int]) -> Stage:
    def stage(piece: str) -> bytes:
        try:
            return bytes([alphabet[c] for c in piece])
        except KeyError:
            return piece.encode()

    return stage


def _replace(old: str, new: str) -> Stage:
    return lambda piece: piece.replace(old, new)


def _replace_step(pattern: dict[str, str], content: str, fused: bool) -> Stage | None:
    if "String" in pattern:
        crosses_pieces = fused and len(pattern["String"]) > 1
        return None if crosses_pieces else _replace(pattern["String"], content)
    if fused:
        return None
    decoder = decoders.Replace(Regex(pattern["Regex"]), content)
    return lambda piece: str(decoder.decode([piece]))


def _word_piece(prefix: str | None) -> Stage:
    def stage(piece: str) -> str:
        if prefix and piece.startswith(prefix):
            return piece[len(prefix) :]
        return " " + piece

    return stage


def _strip(content: str, start: int, stop: int) -> Stage:
    def stage(piece: str) -> str:
        left = 0
        while left < min(start, len(piece)) and piece[left] == content:
            left += 1
        right = len(piece)
        while right > max(left, len(piece) - stop) and piece[right - 1] == content:
            right -= 1
        return piece[left:right]

    return stage
