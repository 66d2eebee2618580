"""The fused log-likelihood of a given text, teacher-forced along main's canonical ids.

It is the probability of one spelling: comparable within one fusion. END is a competitor at every
position but is not scored after the text.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langchain_ensemble.constraints.utf8 import START, state_after
from langchain_ensemble.decoding.boundary import BoundaryTracker
from langchain_ensemble.decoding.following import Follower
from langchain_ensemble.decoding.fusing import (
    check_finite,
    keys_of,
    row_weights,
    spread,
    voice_distribution,
)
from langchain_ensemble.decoding.gate_rules import mixed
from langchain_ensemble.decoding.gates import OPEN, Gatekeeper, weights_behind
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.protocols import Teller, Voice
from langchain_ensemble.decoding.reading import Reader, Stand, stands
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.fusion.base import Fuser, MemberDistribution
from langchain_ensemble.members.base import MemberPrompt

ROWS_AT_ONCE = 64

KEEP_BYTES = 2**28
"""Distributions up to this size are kept, so that other weights cost no forward."""


@dataclass(frozen=True)
class Chunk:
    """What the voices say at some of main's ids; ``logits`` where there is one voice."""

    at: int
    end: int
    logits: Tensor | None
    distributions: list[MemberDistribution]
    silent: list[list[bool]]
    boundary: list[Tensor | None]


class Scorer:
    """One text, read once by every voice."""

    def __init__(
        self,
        voices: Sequence[Voice],
        prompts: Sequence[MemberPrompt],
        text: str,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Tokenise the text for every voice; nothing is run yet.

        Args:
            voices: Main first; one voice is scored raw.
            prompts: One a voice.
            text: What is scored.
            prefixes: What was read of prompts before; None: all is read here.

        Raises:
            ConfigError: Main cannot spell the text.
        """
        self._voices, self._text = voices, text
        self._data = text.encode()
        main = voices[0]
        self._lead = [
            int(p.text_start and v.vocabulary.dummy_prefix)
            for v, p in zip(voices, prompts, strict=True)
        ]
        whole = main.vocabulary.encode(" " * self._lead[0] + text if text else "")
        if whole.unknown:
            raise ConfigError(
                f"member {main.member.name!r} cannot spell {whole.unknown} character(s) of "
                "the text; choose another main= or remove them"
            )
        self._ids = whole.ids
        starts = [0, *(max(0, end - self._lead[0]) for end in whole.ends[:-1])][: len(self._ids)]
        self._starts = starts
        self._states = [state_after(self._data[_char_start(self._data, s) : s]) for s in starts]
        positions = [
            None if state != START else start
            for start, state in zip(starts, self._states, strict=True)
        ]
        plans = [
            stands(voice, prompt, text, self._ids, positions)
            for voice, prompt in zip(voices, prompts, strict=True)
        ]
        self._kept: list[Chunk] | None = None
        self._stands = [plan for _, plan in plans]
        self._readers = [
            Reader(voice, prompt, ids, prefixes)
            for voice, prompt, (ids, _) in zip(voices, prompts, plans, strict=True)
        ]

    @property
    def kept(self) -> bool:
        """Whether what the voices say is in memory, so that another run costs no forward."""
        return self._kept is not None

    @torch.inference_mode()
    def run(
        self,
        weights: Sequence[float],
        fuser: Fuser | None,
        places: Sequence[int],
        num_members: int,
        weigh_boundaries: bool,
        gate: Gatekeeper | None = None,
        *,
        online: bool = False,
    ) -> Score:
        """Read the text and add up its log-probability.

        Args:
            weights: One a voice.
            fuser: The fusion; None with one voice.
            places: Each voice's place among the members the fuser was built for.
            num_members: How many those are.
            weigh_boundaries: Whether open boundaries discount auxiliaries.
            gate: Where members are fused; None: everywhere.
            online: Whether weights follow the text, from ``weights`` on.

        Returns:
            The score.
        """
        total, greedy, seats = 0.0, True, (places, num_members)
        follows = None
        if online and isinstance(fuser, Teller):
            follows = Follower(weights, fuser, seats, gate)
        with closing(self._chunks(weigh_boundaries)) as chunks:  # an error frees the caches now
            for chunk in chunks:
                if fuser is None:
                    got, best = self._raw(chunk)
                else:
                    said = (chunk.distributions, chunk.silent, chunk.boundary)
                    own = weights if follows is None else follows.weights(*said, self._keys(chunk))
                    got, best = self._fused(chunk, fuser, row_weights(own, *said), seats, gate)
                values = torch.stack([got.float(), best.float()]).cpu().double()
                if bool(values[0].isnan().any()):
                    raise MemberError("the fusion gave a score that is no number; it is at fault")
                total += float(values[0].sum())
                greedy = greedy and bool(values[1].all())
        num_bytes = len(self._data)
        bits = -total / (num_bytes * math.log(2)) if num_bytes else 0.0
        windows = max(reader.windows for reader in self._readers)
        return Score(total, num_bytes, bits, len(self._ids), greedy, windows)

    @torch.inference_mode()
    def heard(self, weigh_boundaries: bool) -> Iterator[tuple[Chunk, Tensor]]:
        """What the voices say along the text, for other objectives than its score.

        Args:
            weigh_boundaries: Whether open boundaries discount auxiliaries.

        Yields:
            Some rows, and the union keys [N] of main's ids there, on main's device.
        """
        for chunk in self._chunks(weigh_boundaries):
            yield chunk, self._keys(chunk)

    def _keys(self, chunk: Chunk) -> Tensor:
        """Union keys [N] of main's ids in some rows, on main's device."""
        keys = keys_of(self._voices[0])[0].representative
        return keys[torch.tensor(self._ids[chunk.at : chunk.end], device=keys.device)]

    def _chunks(self, weigh_boundaries: bool) -> Generator[Chunk, None, None]:
        """What the voices say, some rows at a time; kept for other weights where it is small."""
        if self._kept is not None:
            yield from self._kept
            return
        trackers = [
            BoundaryTracker(v.sorted_keys, 1)
            if weigh_boundaries and v.sorted_keys is not None
            else None
            for v in self._voices
        ]
        size = 4 * len(self._ids) * sum(v.member.logits_width for v in self._voices)
        kept: list[Chunk] = []
        try:
            at = 0
            while at < len(self._ids):
                chunk = self._read(at, self._chunk_end(at), trackers)
                if size <= KEEP_BYTES:
                    kept.append(chunk)
                yield chunk
                at = chunk.end
        finally:
            for reader in self._readers:
                reader.close()
        if size <= KEEP_BYTES:
            self._kept = kept

    def _chunk_end(self, at: int) -> int:
        """End of the rows from ``at`` on: no voice reads more than half its context in them."""
        end = min(at + ROWS_AT_ONCE, len(self._ids))
        for voice, plan in zip(self._voices, self._stands, strict=True):
            limit = voice.member.context
            while limit is not None and end > at + 1 and _reach(plan[at:end]) > limit - limit // 2:
                end -= 1
        return end

    def _read(self, at: int, end: int, trackers: Sequence[BoundaryTracker | None]) -> Chunk:
        """Read some rows with every voice."""
        logits = [
            reader.logits(plan[at:end])
            for reader, plan in zip(self._readers, self._stands, strict=True)
        ]
        if any(bool(rows.isnan().any()) for rows in logits):
            check_finite(self._voices, logits)
        if len(self._voices) == 1:
            return Chunk(at, end, logits[0], [], [], [])
        distributions, silent, boundary = [], [], []
        for place, voice in enumerate(self._voices):
            states = self._states[at:end] if place == 0 else [START] * (end - at)
            got = voice_distribution(voice, logits[place], states)
            plan = self._stands[place][at:end]
            distributions.append(got)
            silent.append(
                [s is None or self._starts_apart(place, at + n) for n, s in enumerate(plan)]
            )
            boundary.append(self._boundaries(place, trackers[place], got, at))
        return Chunk(at, end, None, distributions, silent, boundary)

    def _raw(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Main alone: its raw log-softmax."""
        assert chunk.logits is not None  # one voice
        target = torch.tensor(self._ids[chunk.at : chunk.end], device=chunk.logits.device)
        got = torch.log_softmax(chunk.logits, -1).gather(1, target[:, None])[:, 0]
        return got, chunk.logits.argmax(-1) == target

    def _fused(
        self,
        chunk: Chunk,
        fuser: Fuser,
        rows: Tensor,
        seats: tuple[Sequence[int], int],
        gate: Gatekeeper | None,
    ) -> tuple[Tensor, Tensor]:
        main = chunk.distributions[0]
        shut = None if gate is None else gate.codes(chunk.distributions, rows, chunk.boundary)
        rows = weights_behind(rows, shut)
        distributions, weights = spread(chunk.distributions, rows, *seats, fuser)
        target = self._keys(chunk)
        got = fuser.score(distributions, weights, target)
        fused = fuser(distributions, weights)
        if gate is not None:
            got, fused = gate.scored(got, fused, rows, target)
        if shut is not None:
            own = main.logprobs.gather(1, target[:, None])[:, 0]
            got = torch.where(shut == OPEN, got, own)
            fused = mixed(main, fused, shut == OPEN)
        best = fused.logprob_of(target) >= torch.maximum(fused.logprobs.amax(-1), fused.end)
        return got, best

    def _starts_apart(self, place: int, row: int) -> bool:
        return row == 0 and self._lead[place] != self._lead[0]

    def _boundaries(
        self,
        place: int,
        tracker: BoundaryTracker | None,
        distribution: MemberDistribution,
        at: int,
    ) -> Tensor | None:
        """[N] c_i of one voice, position by position; None where it is 1."""
        if tracker is None:
            return None
        weighed = []
        lead = b" " * self._lead[place]
        for n in range(len(distribution.logprobs)):
            row = replace(
                distribution,
                logprobs=distribution.logprobs[n : n + 1],
                end=distribution.end[n : n + 1],
            )
            answer = lead + self._data[: self._starts[at + n]] if at + n else b""
            here = self._stands[place][at + n] is not None
            weighed.append(tracker.observe(row, [answer], [here], [0]))
        return torch.cat(weighed)


def _reach(plan: Sequence[Stand | None]) -> int:
    """How many ids a voice reads from the first to the last of some positions, tails included."""
    stands = [stand for stand in plan if stand is not None]
    if not stands:
        return 0
    return stands[-1].kept - stands[0].kept + max(len(stand.tail) for stand in stands)


def _char_start(data: bytes, end: int) -> int:
    """Where the character around the byte before ``end`` begins; ``end`` where none is open."""
    start = end
    while start > 0 and end - start < 3 and 0x80 <= data[start - 1] < 0xC0:
        start -= 1
    if start > 0 and data[start - 1] >= 0xC0:
        return start - 1
    return end
