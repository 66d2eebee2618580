"""The fused log-likelihood of a given text, byte by byte: comparable across fusions.

Every voice stands at the canonical ids of every prefix ``s[:L]`` at which it may have ended a
token. From there it says, for every byte,

    P_i(c | s[:L])  ~  sum over b <= L of W_b * sum_{u startswith s[b:L] + c} p_i(u | s[:b])

with ``W_L = sum over b < L of W_b p_i(s[b:L] | s[:b])`` the probability of the bytes with a token
ending at ``L``; END comes from ``b = L`` alone. What a voice says at ``L`` hangs on ``s[:L]``
alone: no boundary is chosen by later text. ``s[:L]`` is read where the share of the probability
that ended there is above :data:`LEAST_SHARE`; below, that share is laid evenly over all symbols.
Then the fusion mixes the voices' 257 symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START
from langchain_ensemble.decoding.choose import effective_weights
from langchain_ensemble.decoding.fusing import check_finite, voice_distribution
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.protocols import ByteTrieLike, Voice
from langchain_ensemble.decoding.reading import Reader, byte_stands
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.decoding.score import KEEP_BYTES
from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.fusion.base import Fuser, MemberDistribution
from langchain_ensemble.members.base import MemberPrompt

LEAST_SHARE = 1e-3
"""A position is read by a voice that ends a token there with at least this probability."""

SYMBOLS = 257
"""Bytes, and END."""

IDS_AT_ONCE = 64

ROWS_AT_ONCE = 8
"""Rows whose masses are summed together; a temporary has some 50 MB for 150,000 keys."""

LOWEST = -87.0
"""A byte that nobody can say: the score stays finite."""


class ByteScorer:
    """One text, read once by every voice; other weights cost no forward."""

    def __init__(
        self,
        voices: Sequence[Voice],
        prompts: Sequence[MemberPrompt],
        text: str,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Tokenise the text for every voice; nothing is run yet.

        Args:
            voices: Main first.
            prompts: One a voice.
            text: What is scored.
            prefixes: What was read of prompts before; None: all is read here.

        Raises:
            ConfigError: Main cannot spell the text.
        """
        self._voices, self._prompts, self._text = voices, prompts, text
        self._prefixes = prefixes
        self._data = text.encode()
        main = voices[0]
        spelled = main.vocabulary.encode(text)
        if spelled.unknown:
            raise ConfigError(
                f"member {main.member.name!r} cannot spell {spelled.unknown} character(s) of "
                "the text; choose another main= or remove them"
            )
        self._tokens = len(spelled.ids)
        self._said: tuple[Tensor, Tensor, int] | None = None

    @property
    def kept(self) -> bool:
        """Whether what the voices say was heard, and is small enough to be kept."""
        return self._said is not None and self._said[0].nbytes <= KEEP_BYTES

    @torch.inference_mode()
    def run(
        self, weights: Sequence[float], fuser: Fuser, places: Sequence[int], num_members: int
    ) -> Score:
        """Read the text and add up its log-probability.

        Args:
            weights: One a voice.
            fuser: A fusion that mixes bytes.
            places: Each voice's place among the members the fuser was built for.
            num_members: How many those are.

        Returns:
            The score.
        """
        if not self._data:
            return Score(0.0, 0, 0.0, 0, is_greedy=True, windows=1)
        if self._said is None:
            self._said = self.hear()
        said, silent, windows = self._said
        if len(self._voices) == 1:  # itself, whatever role it has
            mixed = said[0]
        else:
            mixed = _mixed(said, silent, weights, fuser, (places, num_members))
        target = torch.tensor(list(self._data))
        got = mixed.gather(-1, target[:, None])[:, 0].clamp_min(LOWEST).double()
        if bool(got.isnan().any()):
            raise MemberError("the fusion gave a score that is not a number; it is at fault")
        total, size = float(got.sum()), len(self._data)
        greedy = bool((mixed.argmax(-1) == target).all())
        return Score(total, size, -total / (size * math.log(2)), self._tokens, greedy, windows)

    def hear(self) -> tuple[Tensor, Tensor, int]:
        """[M, n, 257] what the voices say, [n, M] where one says nothing, and windows."""
        said, windows = [], 1
        for voice, prompt in zip(self._voices, self._prompts, strict=True):
            heard = Listener(voice, prompt, self._text, self._prefixes)
            said.append(heard.listen().float())
            windows = max(windows, heard.windows)
        together = torch.stack(said)
        return together, (together.amax(-1) == -torch.inf).T, windows


def _mixed(
    said: Tensor,
    silent: Tensor,
    weights: Sequence[float],
    fuser: Fuser,
    seats: tuple[Sequence[int], int],
) -> Tensor:
    """[n, 257] what a fusion makes of some voices [m, n, 257], put at their places among all."""
    places, size = seats
    rows = torch.tensor([list(weights)]).expand(len(silent), -1)
    rows = effective_weights(rows, silent, torch.ones_like(rows))
    wide = rows.new_zeros(len(rows), size)
    wide[:, list(places)] = rows
    logps = said.new_full((size, *said.shape[1:]), -torch.inf)
    logps[list(places)] = said
    mix = getattr(fuser, "over_bytes")  # noqa: B009  # not every Fuser has it
    mixed: Tensor = mix(logps, wide)
    return mixed


class _Row:
    """What one boundary says of the text after it: by how many bytes of the text have followed."""

    def __init__(self, table: Tensor, end: float) -> None:
        self.through: list[float] = table[:, SYMBOLS].tolist()  # [D] of keys that start with them
        self.ended: list[float] = table[:, SYMBOLS + 1].tolist()  # [D] of the key that they are
        self.following = table[:, :SYMBOLS]  # [D, 257] of the keys that go on with each byte
        self.end = end


Alive = list[tuple[int, float]]
"""Boundaries from which a key is still open, and their log W."""


class Listener:
    """One voice's byte distributions along a text."""

    def __init__(
        self,
        voice: Voice,
        prompt: MemberPrompt,
        text: str,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Tokenise every prefix; nothing is run yet.

        Args:
            voice: The voice; it takes its own canonical ids.
            prompt: Its prompt.
            text: The text.
            prefixes: What was read of prompts before; None: all is read here.
        """
        self._voice = voice
        self._lead = int(prompt.text_start and voice.vocabulary.dummy_prefix)
        self._held = b" " * self._lead + text.encode()
        whole = voice.vocabulary.encode(" " * self._lead + text).ids
        self._stands, self._states = byte_stands(voice, self._lead, text, whole)
        self._reader = Reader(voice, prompt, whole, prefixes)
        self._rows: dict[int, _Row] = {}

    @property
    def windows(self) -> int:
        """How often the member had to start over."""
        return self._reader.windows

    @property
    def _trie(self) -> ByteTrieLike:
        trie = self._voice.trie
        assert trie is not None  # the fusion asked for paths
        return trie

    def listen(self) -> Tensor:
        """Read the text.

        Returns:
            [n, 257] log-probabilities before each byte; rows of -inf where the voice has no say.
        """
        said = torch.full((len(self._held), SYMBOLS), -torch.inf, dtype=torch.float64)
        alive: Alive = []
        at = 0
        try:
            while at < len(self._held):
                end = self._chunk_end(at)
                direct = [n for n in range(at, end) if self._directly(n)]
                self._read(direct)
                while True:
                    after, missing = self._walk(alive, at, end, said)
                    if not missing:
                        break
                    self._read(missing)
                alive, at = after, end
                open_ = {begin for begin, _ in alive}
                self._rows = {n: row for n, row in self._rows.items() if n in open_}
        finally:
            self._reader.close()
        return said[self._lead :]

    def _directly(self, n: int) -> bool:
        """Whether a prefix's ids are those of the whole text."""
        stand = self._stands[n]
        return stand is not None and not stand.tail

    def _chunk_end(self, at: int) -> int:
        """How far to read at once: some ids, and at most half the member's context."""
        limit = self._voice.member.context
        room = IDS_AT_ONCE if limit is None else min(IDS_AT_ONCE, limit - limit // 2)
        first: int | None = None
        longest = 0
        for n in range(at, len(self._held)):
            stand = self._stands[n]
            if stand is None:
                continue
            first = stand.kept if first is None else min(first, stand.kept)
            longest = max(longest, len(stand.tail))
            if n > at and stand.kept - first + longest > room:
                return n
        return len(self._held)

    def _read(self, positions: Sequence[int]) -> None:
        """Ask the member after some prefixes."""
        for at in range(0, len(positions), IDS_AT_ONCE):
            some = positions[at : at + IDS_AT_ONCE]
            logits = self._reader.logits([self._stands[n] for n in some])
            if bool(logits.isnan().any()):
                check_finite([self._voice], [logits])
            said = self._said(some, logits)
            order = self._trie.order.to(logits.device)
            keys = said.logprobs.index_select(1, order)
            for first in range(0, len(some), ROWS_AT_ONCE):
                rows = slice(first, first + ROWS_AT_ONCE)
                self._note(some[rows], self._trie.trie.masses(keys[rows]), said.end[rows])

    def _said(self, positions: Sequence[int], logits: Tensor) -> MemberDistribution:
        """What the member says after some prefixes."""
        return voice_distribution(self._voice, logits, [self._states[n] for n in positions])

    def _note(self, positions: Sequence[int], masses: Tensor, ends: Tensor) -> None:
        """Keep of some rows [n, W] what the text after them can ask: one copy to the host."""
        nodes: list[Tensor] = []
        places: list[Tensor] = []
        sizes = []
        for number, at in enumerate(positions):
            size = 0
            while at + size <= len(self._held):
                prefix = self._held[at : at + size]
                node = self._trie.column(prefix)
                if node == self._trie.trie.nothing:
                    break
                following, to = self._trie.following(prefix)
                exact = self._trie.position(prefix)
                row = torch.tensor([node, self._trie.trie.nothing if exact is None else exact])
                nodes.append(torch.cat([to, row]) + number * masses.shape[1])
                place = torch.tensor([SYMBOLS, SYMBOLS + 1])
                places.append(torch.cat([following, place]) + len(places) * (SYMBOLS + 2))
                size += 1
            sizes.append(size)
        got = masses.flatten().take(torch.cat(nodes).to(masses.device))
        values = torch.cat([got, ends]).cpu().double()
        table = torch.full((len(places), SYMBOLS + 2), -torch.inf, dtype=torch.float64)
        table.view(-1)[torch.cat(places)] = values[: len(got)]
        for at, size, end in zip(positions, sizes, values[len(got) :].tolist(), strict=True):
            self._rows[at] = _Row(table[:size], end)
            table = table[size:]

    def _walk(self, before: Alive, begin: int, end: int, said: Tensor) -> tuple[Alive, list[int]]:
        """Go along the text with the rows that are there; says which others are needed."""
        alive, missing = list(before), []
        for at in range(begin, end):
            rows = self._rows
            alive = [(b, w) for b, w in alive if at - b < len(rows[b].through)]
            through = _sum([w + rows[b].through[at - b] for b, w in alive])
            weight = _sum([w + rows[b].ended[at - b] for b, w in alive])
            lost = through == -math.inf  # the start, or bytes that no key spells: paths start anew
            if lost:
                weight, through = 0.0, 0.0
            stands = self._stands[at] is not None and (not lost or self._states[at] == START)
            rare = weight - through <= math.log(LEAST_SHARE)
            if stands and not rare:
                if at in rows:
                    alive.append((at, weight))
                else:
                    missing.append(at)
            if at >= self._lead and alive:
                said[at] = self._next(alive, at, weight if rare else -math.inf)
        return alive, missing

    def _next(self, alive: Alive, at: int, unheard: float) -> Tensor:
        """[257] the next byte or END; ``unheard`` ended here and was not read."""
        rows = self._rows
        parts = torch.stack([rows[b].following[at - b] + w for b, w in alive])
        for number, (b, w) in enumerate(alive):
            if b == at or at == self._lead:  # the answer is whole where the voice stands
                parts[number, SYMBOLS - 1] = w + rows[b].end
        even = torch.full((1, SYMBOLS), unheard - math.log(SYMBOLS), dtype=parts.dtype)
        logs = torch.cat([parts, even]).logsumexp(0)
        total = logs.logsumexp(0)
        return logs - total.masked_fill(total == -torch.inf, 0.0)


def _sum(logs: Sequence[float]) -> float:
    """Log of a sum."""
    top = max(logs, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))
