"""Text -> ids whose bytes are the text's bytes: the tokenizer's own model, without its habits.

The tokenizer's model (merges, unigram scores) does the work. Left out are the things that change
text or add to it: control tokens, the dummy prefix, normalizers other than the one that spells a
space (so no NFC, no lower case, no stripping), pre-tokenizers that drop white space. Every result
is checked: its ids' bytes joined must be the text. Where they are not (a literal ``▁``, a literal
``</s>`` in a unigram vocabulary, WordPiece and ``</w>`` vocabularies, whose models drop spaces)
the text is spelled by the longest keys from left to right; for WordPiece that is its own rule.

Knows nothing about how long texts are cut (:mod:`borders`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from langchain_ensemble.vocab.backend import Backend, rebuild, steps

_DROPS_SPACES = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer")
_UTF8_BYTES = bytes([*range(0xC0), *range(0xC2, 0xF5)])


class Spelling(NamedTuple):
    """One piece of text in ids.

    Attributes:
        ids: The ids.
        ends: Byte offset, within the piece, where each id's bytes end.
        unknown: Characters that the vocabulary cannot spell.
        size: Bytes of the piece.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    unknown: int
    size: int


class Encoder:
    """Spells pieces of text.

    Attributes:
        key_of: Bytes -> the id that stands for them, for every key.
        unk_id: What an unspellable character becomes, None where it is left out.
        complete: Whether every text can be spelled.
        by_model: Whether the tokenizer's model is asked; otherwise longest keys are.
        fuses_unknown: Whether unspellable neighbours become one ``unk_id``.
        splits: Whether text is split before the model sees it.
    """

    def __init__(
        self,
        backend: Backend,
        text_bytes: list[bytes | None],
        byte_pieces: list[bool],
        unk_id: int | None,
    ) -> None:
        """Build the encoder.

        Args:
            backend: The tokenizer's parts.
            text_bytes: Bytes of every id that may be emitted, None for control ids and holes.
            byte_pieces: Which ids are byte tokens of a fallback.
            unk_id: The model's unknown id.
        """
        self._bytes = text_bytes
        self.unk_id = unk_id
        self.by_model = backend.kind in ("BPE", "Unigram") and not (
            backend.flags.get("continuing_subword_prefix")
            or backend.flags.get("end_of_word_suffix")
        )
        self.fuses_unknown = self.by_model and bool(backend.flags.get("fuse_unk", True))
        self.rust = rebuild(
            backend.rust, _normalizer(backend), _pre_tokenizer(backend.pre_tokenizer)
        )
        self.splits = self.by_model and self.rust.pre_tokenizer is not None
        self._added = _added_patterns(backend, text_bytes)
        self.key_of, spelled_twice = _first_keys(text_bytes, byte_pieces)
        self._longest = max(map(len, self.key_of), default=0)
        self._added_ids = {token.content: i for i, token in backend.added.items() if self._has(i)}
        for key, ids in spelled_twice.items():
            self._choose(key, ids)
        self.complete = all(bytes([b]) in self.key_of for b in _UTF8_BYTES)

    def split(self, text: str) -> frozenset[int]:
        """Positions inside a text at which it is split before the model sees it.

        Args:
            text: Any text.
        """
        seen = text
        if self.rust.normalizer is not None:  # a character for a character, or one for each byte
            seen = self.rust.normalizer.normalize_str(text)
        spans = [span for _, span in self.rust.pre_tokenizer.pre_tokenize_str(seen)]
        cuts = frozenset(at for span in spans for at in span if 0 < at < len(seen))
        if len(seen) == len(text):
            return cuts
        ends = accumulate(len(character.encode()) for character in text)
        return frozenset(at for at, end in enumerate(ends, 1) if end in cuts)

    def added_texts(self) -> list[str]:
        """Contents of added tokens that are ordinary text."""
        return list(self._added_ids)

    def describe(self) -> str:
        """All that decides what :meth:`spell` gives, but for the bytes of the ids."""
        patterns = [pattern.pattern for pattern in self._added]
        return json.dumps([self.rust.to_str(), patterns, self.unk_id])

    def spell(self, text: str) -> Spelling:
        """Spell one piece of text.

        Args:
            text: Valid Unicode without lone surrogates.

        Returns:
            Ids whose bytes are the text's bytes, but for characters that have no spelling.
        """
        ids: list[int] = []
        ends: list[int] = []
        unknown = size = 0
        for part, added_id in self._split_added(text, 0):
            if added_id is not None:
                length = len(part.encode())
                spelled = Spelling((added_id,), (length,), 0, length)
            else:
                spelled = self._by_model(part) or self._by_longest(part)
            if spelled.unknown and not spelled.ids and ids:
                ends[-1] += spelled.size  # left out: the bytes go with the id before
            ids += spelled.ids
            ends += [size + end for end in spelled.ends]
            unknown += spelled.unknown
            size += spelled.size
        return Spelling(tuple(ids), tuple(ends), unknown, size)

    def spell_all(self, texts: Sequence[str]) -> dict[str, Spelling]:
        """Spell many different pieces at once.

        Args:
            texts: The pieces.

        Returns:
            What :meth:`spell` gives for each.
        """
        plain = [
            text for text in texts if self.by_model and not any(p.search(text) for p in self._added)
        ]
        found: dict[str, Spelling] = {}
        encodings = self.rust.encode_batch_fast(plain, add_special_tokens=False)
        for text, encoding in zip(plain, encodings, strict=True):
            spelled = self._checked(encoding.ids, text.encode())
            if spelled is not None:
                found[text] = spelled
        return {text: found.get(text) or self.spell(text) for text in texts}

    def _has(self, token_id: int) -> bool:
        return token_id < len(self._bytes) and self._bytes[token_id] is not None

    def _choose(self, key: bytes, ids: list[int]) -> None:
        """Let the id that the encoder emits stand for bytes that are spelled twice."""
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return
        spelled = self.spell(text).ids
        if len(spelled) == 1 and spelled[0] in ids:
            self.key_of[key] = spelled[0]

    def _split_added(self, text: str, level: int) -> list[tuple[str, int | None]]:
        """Cut out added tokens as the tokenizer does: leftmost, longest, in two rounds."""
        if level == len(self._added):
            return [(text, None)] if text else []
        parts: list[tuple[str, int | None]] = []
        at = 0
        for match in self._added[level].finditer(text):
            parts += self._split_added(text[at : match.start()], level + 1)
            parts.append((match[0], self._added_ids[match[0]]))
            at = match.end()
        return parts + self._split_added(text[at:], level + 1)

    def _by_model(self, text: str) -> Spelling | None:
        """What the tokenizer's model says, None where its ids do not have the text's bytes."""
        if not self.by_model:
            return None
        encoding = self.rust.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        checked = self._checked(ids, text.encode())
        return checked or self._with_unknown(text, ids, encoding.offsets)

    def _checked(self, ids: list[int], wanted: bytes) -> Spelling | None:
        """The ids, if their bytes joined are what is wanted."""
        parts = []
        for i in ids:
            part = self._bytes[i] if i < len(self._bytes) else None
            if part is None:
                return None
            parts.append(part)
        if b"".join(parts) != wanted:
            return None
        return Spelling(tuple(ids), tuple(accumulate(map(len, parts))), 0, len(wanted))

    def _with_unknown(
        self, text: str, ids: list[int], spans: list[tuple[int, int]]
    ) -> Spelling | None:
        """The model's ids where some are ``unk_id``, checked span by span."""
        at = size = unknown = 0
        ends: list[int] = []
        for i, (start, end) in zip(ids, spans, strict=True):
            is_unknown = i == self.unk_id
            wanted = text[start:end].encode()
            if start < at or not (is_unknown or (self._has(i) and self._bytes[i] == wanted)):
                return None
            if not self._may_leave_out(text[at:start]):
                return None
            size += len(text[at:start].encode())
            if start > at and ends:
                ends[-1] = size  # the bytes that were left out go with the id before
            unknown += start - at + (end - start if is_unknown else 0)
            size += len(wanted)
            ends.append(size)
            at = end
        if not self._may_leave_out(text[at:]):
            return None
        size += len(text[at:].encode())
        if at < len(text) and ends:
            ends[-1] = size
        return Spelling(tuple(ids), tuple(ends), unknown + len(text) - at, size)

    def _may_leave_out(self, text: str) -> bool:
        """Whether nothing can spell a text, not even as unknown."""
        return not text or (
            self.unk_id is None and not any(c.encode() in self.key_of for c in text)
        )

    def _by_longest(self, text: str) -> Spelling:
        """The longest keys from left to right; each character without one is unknown."""
        data = text.encode()
        ids: list[int] = []
        ends: list[int] = []
        at = unknown = 0
        while at < len(data):
            found, end = self._longest_key(data, at)
            if found is None:
                unknown += 1
                end = at + 1
                while end < len(data) and data[end] & 0xC0 == 0x80:
                    end += 1
                found = self.unk_id
                if self.fuses_unknown and ids and ids[-1] == found:
                    ids.pop()
                    ends.pop()
            if found is not None:
                ids.append(found)
                ends.append(end)
            elif ends:
                ends[-1] = end
            at = end
        return Spelling(tuple(ids), tuple(ends), unknown, len(data))

    def _longest_key(self, data: bytes, at: int) -> tuple[int | None, int]:
        for end in range(min(len(data), at + self._longest), at, -1):
            found = self.key_of.get(data[at:end])
            if found is not None:
                return found, end
        return None, at


def _normalizer(backend: Backend) -> dict[str, Any] | None:
    """Keep only what spells a space, or the byte-level alphabet."""
    kept = [
        step
        for step in steps(backend.normalizer)
        if step["type"] == "ByteLevel"
        or (step["type"] == "Replace" and step["pattern"] == {"String": " "})
    ]
    return {"type": "Sequence", "normalizers": kept} if kept else None


def _pre_tokenizer(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same cuts without a dummy prefix; next to a metaspace nothing may drop white space."""
    kept = []
    parts = steps(part)
    metaspace = any(step["type"] == "Metaspace" for step in parts)
    for step in parts:
        if step["type"] in _DROPS_SPACES and metaspace:
            continue
        kept.append(step)
        if step["type"] == "ByteLevel":
            kept[-1] = {**step, "add_prefix_space": False}
        if step["type"] == "Metaspace":
            never = {k: v for k, v in step.items() if k != "add_prefix_space"}
            kept[-1] = {**never, "prepend_scheme": "never"}
    return {"type": "Sequence", "pretokenizers": kept} if kept else None


def _added_patterns(backend: Backend, text_bytes: list[bytes | None]) -> list[re.Pattern[str]]:
    """Patterns of added ordinary text: first what is matched raw, then what is normalized."""
    rounds: dict[bool, list[tuple[int, str]]] = {False: [], True: []}
    for added_id, token in backend.added.items():
        content = token.content
        if added_id < len(text_bytes) and text_bytes[added_id] is not None:
            pattern = re.escape(content)
            if token.single_word:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            rounds[token.normalized].append((len(content), pattern))
    return [
        re.compile("|".join(pattern for _, pattern in sorted(found, key=lambda p: -p[0])))
        for found in rounds.values()
        if found
    ]


def _first_keys(
    text_bytes: list[bytes | None], byte_pieces: list[bool]
) -> tuple[dict[bytes, int], dict[bytes, list[int]]]:
    """The first id of every key (byte tokens last), and the ids of keys that have several."""
    key_of: dict[bytes, int] = {}
    spelled_twice: dict[bytes, list[int]] = {}
    for i, key in enumerate(text_bytes):
        if key is None:
            continue
        first = key_of.setdefault(key, i)
        if first == i:
            continue
        spelled_twice.setdefault(key, [first]).append(i)
        if byte_pieces[first] and not byte_pieces[i]:
            key_of[key] = i
    return key_of, spelled_twice
