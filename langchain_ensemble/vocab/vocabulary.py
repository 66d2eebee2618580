"""One tokenizer as the ensemble sees it: bytes, roles, an exact encoder that can go on.

``encode`` gives the canonical ids of an answer; ``extend`` gives the same ids when the answer has
grown, at a cost that does not depend on how long it already is. Both cut text at the same borders
and spell the pieces one by one, so they agree by construction.

Nothing here knows a model: the logits width and the end ids are handed in.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.vocab.backend import Backend, read_backend
from langchain_ensemble.vocab.borders import Border, Borders, literals
from langchain_ensemble.vocab.encoder import Encoder, Spelling
from langchain_ensemble.vocab.roles import Role, roles_of_ids
from langchain_ensemble.vocab.token_bytes import byte_pieces, bytes_of_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED_PIECES = 65_536
_T = TypeVar("_T")
_SELF_CHECK = """It's 12,345.67% of what we'll do; they'd, you're, I'M -- "quoted" (text) [x]{y}.
  def f(a_b, *args):  # tabs\t\tand    runs
\treturn {'k': a**2 != 0, "url": "https://www.example.org/a?b=c&d=1#e"}

    2024-05-01T12:00:00Z  a@b.c  C++ / C#  x<y>=z  ...  !!!  ~/dir/file.tar.gz
naïve café Straße Ünïcödé ﬁ  你好，世界。今天天气很好！「日本語」
カタカナ ひらがな 한국어 문장  Привет, мир!
שלום עולם  مرحبا بالعالم  नमस्ते दुनिया  สวัสดีชาวโลก
👩‍👩‍👧‍👦 🇩🇪 ✈️ ½ ² Ⅷ １２３ \u00a0\u3000 end \n\n\n """


class Encoding(NamedTuple):
    """A text in ids.

    Attributes:
        ids: The ids.
        ends: Byte offset in the text where each id's bytes end.
        unknown: Characters that the vocabulary cannot spell.
    """

    ids: list[int]
    ends: list[int]
    unknown: int


class Vocabulary:
    """One member's ids, their bytes and roles, and its exact encoder. Immutable; safe to share.

    Attributes:
        name: How messages call the tokenizer.
        size: Ids that the tokenizer names (the highest + 1).
        width: Columns of the model's logits; every table has this length.
        token_bytes: Bytes of each id, None where no text can produce it.
        token_roles: Role of each id, None for text.
        end_ids: Ids that end the member's turn, ascending.
        unk_id: What a character without a spelling becomes, None where it is left out.
        representative: The id that stands for the key of each id, -1 where it has none.
        byte_fallback: Whether an id is a byte token of a fallback.
        key_of: Bytes of every key -> its representative id.
        dummy_prefix: Whether the tokenizer itself puts a space before a text.
        content_hash: What determines ids <-> bytes and ``encode``, as hex; the same for the same
            tokenizer wherever it was loaded from.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        width: int | None = None,
        end_ids: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> None:
        """Read a tokenizer.

        Args:
            tokenizer: A fast transformers tokenizer.
            width: Columns of the model's logits; None takes the tokenizer's size.
            end_ids: Ids that end a turn by the generation config.
            chat_template: The template the member really uses; None takes the tokenizer's own.

        Raises:
            VocabularyError: The tokenizer cannot be turned into bytes, or the model is too narrow
                for its ordinary text.
        """
        backend = read_backend(tokenizer)
        self.name = backend.name
        self.size = backend.size
        self.width = backend.size if width is None else width
        self.token_bytes = _fit(bytes_of_ids(backend), self.width, None)
        roles = roles_of_ids(backend, tokenizer, end_ids, chat_template)
        self.token_roles: list[Role | None] = _fit(roles, self.width, None)
        _check_width(backend, self.width, roles)
        self.byte_fallback = _fit(byte_pieces(backend), self.width, False)
        given = [i for i in end_ids if 0 <= i < self.width]
        ends = {i: None for i, role in enumerate(self.token_roles) if role is Role.END}
        self.end_ids = tuple(sorted({**ends, **dict.fromkeys(given)}))
        self.unk_id = self._find_unk(backend, tokenizer)
        text_bytes = [
            None if role is not None else key
            for key, role in zip(self.token_bytes, self.token_roles, strict=True)
        ]
        self._encoder = Encoder(backend, text_bytes, self.byte_fallback, self.unk_id)
        self.key_of = self._encoder.key_of
        self.representative = [-1 if key is None else self.key_of[key] for key in text_bytes]
        self._text_bytes = text_bytes
        self._borders = self._find_borders(backend)
        self._spell = lru_cache(_REMEMBERED_PIECES)(self._encoder.spell)
        self.dummy_prefix = self._has_dummy_prefix(backend)
        self.content_hash = self._hash()

    def encode(self, text: str) -> Encoding:
        """The canonical ids of a text on its own: no control ids, no dummy prefix.

        Args:
            text: Any text.

        Returns:
            Ids whose bytes join to the text's bytes, but for characters that have no spelling,
            which become ``unk_id`` and are counted.

        Raises:
            ConfigError: The text has a lone surrogate.
        """
        check_text(text)
        return _joined([self._spell(piece) for piece in self._pieces(text)])

    def encode_all(self, texts: Sequence[str]) -> list[Encoding]:
        """What :meth:`encode` gives for each of many texts, faster.

        Args:
            texts: Any texts.

        Returns:
            One encoding a text.

        Raises:
            ConfigError: A text has a lone surrogate.
        """
        for text in texts:
            check_text(text)
        cut = [self._pieces(text) for text in texts]
        spelled = self._encoder.spell_all(list(dict.fromkeys(p for pieces in cut for p in pieces)))
        return [_joined([spelled[piece] for piece in pieces]) for pieces in cut]

    def extend(
        self, ids: Sequence[int], ends: Sequence[int], text: str, added: str
    ) -> tuple[int, list[int], list[int]]:
        """The canonical ids of a text that has grown, given those it had.

        The cost depends on ``added`` and on how far back the last border lies, not on the length
        of ``text``.

        Args:
            ids: ``encode(text).ids``.
            ends: ``encode(text).ends``.
            text: The text so far.
            added: What is appended to it.

        Returns:
            ``(kept, new_ids, new_ends)``: ``encode(text + added)`` has the ids
            ``ids[:kept] + new_ids`` and the ends ``ends[:kept] + new_ends``.

        Raises:
            ConfigError: ``added`` has a lone surrogate.
        """
        if not added:
            return len(ids), [], []
        check_text(added)
        for least in (Border.LOOSE, Border.HARD):
            start = self._restart(text, added, least)
            new = self.encode(text[start:] + added)
            hard = start in (0, len(text)) or self.border(text[start - 1], text[start])
            if hard or new.ids[:1] == [self.unk_id]:
                break
        size = ends[-1] if ends else len(text.encode())
        base = size - len(text[start:].encode())
        kept = bisect_right(ends, base) if start else 0
        return kept, new.ids, [base + end for end in new.ends]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for; control ids stand for none.

        Args:
            ids: Ids below ``width``.
        """
        return b"".join(self._text_bytes[i] or b"" for i in ids)

    def border(self, a: str, b: str) -> bool:
        """Whether no token can reach over the place between two characters, whatever is around.

        Args:
            a: The character before.
            b: The character after.
        """
        return self._borders is not None and self._borders.between(a, b) is Border.HARD

    def _restart(self, text: str, added: str, least: Border) -> int:
        """From where on a text that grows has to be encoded again."""
        if self._borders is None or not text:
            return 0
        if self._borders.between(text[-1], added[0]) is Border.HARD:
            return len(text)
        return self._borders.last(text, least)

    def _find_unk(self, backend: Backend, tokenizer: PreTrainedTokenizerBase) -> int | None:
        piece = backend.unk_piece
        found = None if piece is None else backend.rust.token_to_id(piece)
        if found is None:
            named: int | None = getattr(tokenizer, "unk_token_id", None)
            if named is not None and named < self.width and self.token_roles[named] is Role.UNK:
                found = named
        return found if found is not None and found < self.width else None

    def _pieces(self, text: str) -> list[str]:
        if self._borders is None:
            return [text] if text else []
        return self._borders.pieces(text)

    def _find_borders(self, backend: Backend) -> Borders | None:
        """Borders, if a text of all kinds has the same ids with and without them."""
        encoder = self._encoder

        def fuses(a: str, b: str) -> bool:
            if encoder.complete or b.encode() in self.key_of:
                return False  # the usual case
            left_out = self.unk_id is None  # its bytes go with the id before
            return left_out or (encoder.fuses_unknown and a.encode() not in self.key_of)

        borders = Borders(
            encoder.split if encoder.splits else None,
            [key for key in self.token_bytes if key],
            not backend.flags.get("ignore_merges"),
            [*encoder.added_texts(), *literals(backend.pre_tokenizer)],
            fuses,
        )
        keys = encoder.key_of
        text = "".join(c for c in _SELF_CHECK if encoder.complete or c.encode() in keys)
        cut = _joined([encoder.spell(piece) for piece in borders.pieces(text)])
        return borders if cut == _joined([encoder.spell(text)]) else None

    def _has_dummy_prefix(self, backend: Backend) -> bool:
        for text in ("a", "1", "."):
            ids = backend.rust.encode(text, add_special_tokens=False).ids
            if self.decode([i for i in ids if i < self.width])[:1] == b" ":
                return True
        return False

    def _hash(self) -> str:
        text = [None if key is None else key.hex() for key in self._text_bytes[: self.size]]
        while text and text[-1] is None:
            text.pop()
        found = hashlib.sha256(self._encoder.describe().encode())
        found.update(json.dumps(text).encode())
        return found.hexdigest()


def _joined(spelled: Sequence[Spelling]) -> Encoding:
    ids: list[int] = []
    ends: list[int] = []
    unknown = size = 0
    for part in spelled:
        ids += part.ids
        ends += [size + end for end in part.ends]
        unknown += part.unknown
        size += part.size
    return Encoding(ids, ends, unknown)


def check_text(text: str) -> None:
    """Refuse what has no UTF-8 bytes.

    Args:
        text: Any string.

    Raises:
        ConfigError: It is no text, or has a lone surrogate.
    """
    if not isinstance(text, str):
        raise ConfigError(f"the text is a {type(text).__name__}; give a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position "
            f"{error.start}; it is not valid Unicode and has no bytes. Remove or replace it, for "
            f"example with text.encode('utf-8', 'replace').decode()."
        ) from None


def _fit(table: list[_T], width: int, blank: _T) -> list[_T]:
    return table[:width] + [blank] * (width - len(table))


def _check_width(backend: Backend, width: int, roles: list[Role | None]) -> None:
    """Refuse a model that has no column for a piece its tokenizer's own model emits."""
    beyond = [i for i in range(width, backend.size) if backend.pieces[i] and roles[i] is None]
    if beyond:
        raise VocabularyError(
            f"tokenizer {backend.name!r} spells text with ids up to {beyond[-1]}, but the model "
            f"has only {width} logits columns. Tokenizer and model do not belong together."
        )
