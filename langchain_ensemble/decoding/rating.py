"""Weights by the prompt: who says it best counts most, once a prompt, before anything is decoded.

PackLLM-sim (Mavromatis et al., COLM 2024, arXiv:2404.11531):

    w_k = softmax_k(-NLL_k(prompt) / tau)

with two changes. Theirs is the NLL a token, which different tokenizers make incomparable; ours is
the NLL a *byte* of the prompt's text, of each member alone. And a prompt of fewer than 32 bytes is
counted as 32: little text is little evidence, and no text none, so weights go to uniform.

Its price is one more reading of every prompt by every member, a piece at a time, so that other
requests can take steps in between.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence

import torch

from langchain_ensemble.decoding.protocols import Voice, Warn
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.base import MemberPrompt

logger = logging.getLogger(__name__)

TEMPERATURE = 1.0
"""tau, in nats a byte of the prompt."""

AT_ONCE = 512
"""Ids that are read, about, before other requests take their steps."""

FEWEST = 32
"""Bytes that a prompt counts as at least."""

PIECE_BYTES = 2**27
"""Logits of one piece at most."""

UNKNOWN = math.log(256)
"""Nats that a byte costs which a member cannot spell: all bytes are as good."""


class PromptWeights:
    """The weights of each prompt of one request; shared by the phases of an answer.

    Attributes:
        weights: One a voice for every prompt, once ``done``.
    """

    def __init__(self, voices: Sequence[Voice], texts: Sequence[str]) -> None:
        """Keep what is to be read.

        Args:
            voices: Main first, more than one.
            texts: The prompts' own texts, the same for all voices.
        """
        self._voices, self._texts = voices, texts
        self.weights: list[tuple[float, ...]] = []
        self._reading: Generator[int, None, None] | None = None

    @property
    def done(self) -> bool:
        """Whether every prompt has its weights."""
        return len(self.weights) == len(self._texts)

    def read_on(self, warn: Warn) -> None:
        """Read on: some prompts with some voices, or a piece of a long one.

        Args:
            warn: Called where a text says nothing about anybody.
        """
        if self._reading is None:
            self._reading = self._read(warn)
        read = 0
        while not self.done and read < AT_ONCE:
            read += next(self._reading, AT_ONCE)

    def close(self) -> None:
        """Stop; what was found stays."""
        if self._reading is not None:
            self._reading.close()
        self._reading = None

    def _read(self, warn: Warn) -> Generator[int, None, None]:
        for number in range(len(self.weights), len(self._texts)):
            text = self._texts[number]
            if not text:
                warn(
                    f"weights='prompt', but prompt {number} has no text that members could be "
                    "judged by; its weights are uniform"
                )
                self.weights.append((1.0 / len(self._voices),) * len(self._voices))
                continue
            nats = []
            for voice in self._voices:
                nats.append((yield from nats_per_byte(voice, text)))
            self.weights.append(by_nats(nats))
            names = (voice.member.name for voice in self._voices)
            logger.info(
                "prompt %d: weights %s", number, dict(zip(names, self.weights[-1], strict=True))
            )


def by_nats(nats: Sequence[float], temperature: float = TEMPERATURE) -> tuple[float, ...]:
    """``softmax(-nats / temperature)``.

    Args:
        nats: NLL a byte, one a member.
        temperature: tau.

    Returns:
        One weight a member, sum 1.
    """
    best = min(nats)
    parts = [math.exp((best - one) / temperature) for one in nats]
    total = math.fsum(parts)
    return tuple(part / total for part in parts)


def nats_per_byte(voice: Voice, text: str) -> Generator[int, None, float]:
    """How badly one member alone says a text.

    It reads its own canonical ids of the text after the id that begins a document (bos, else the
    end-of-document id; a member without either is judged from its second id on). Of a text that is
    longer than its context, it is judged by the beginning.

    Args:
        voice: The member.
        text: Not empty.

    Yields:
        After each piece, how many ids were read.

    Returns:
        Negative log-likelihood in nats, divided by the bytes that were judged, or by
        :data:`FEWEST`.

    Raises:
        ConfigError: The member reads prompts with an encoder, which gives them no probability.
    """
    start, lead = _start(voice)
    encoding = voice.vocabulary.encode(" " * lead + text)
    ids, ends = encoding.ids, encoding.ends
    if voice.member.context is not None:
        ids = ids[: voice.member.context - len(start)]
    first = 0 if start else 1
    if len(ids) <= first:
        return 0.0  # nothing to judge by
    total = _unspelled(voice, ids, ends, first) * UNKNOWN
    session = voice.member.session()
    try:
        known = session.prefill([MemberPrompt(tuple(start or ids[:1]))])  # [1, V]
        size = min(AT_ONCE, max(1, PIECE_BYTES // (4 * voice.member.logits_width)))
        for at in range(first, len(ids), size):
            piece = ids[at : at + size]
            after = session.step([piece], keep=None)[0]  # [q, V]
            before = torch.cat([known, after[:-1]])
            targets = torch.tensor(piece, device=after.device)
            said = torch.log_softmax(before, -1).gather(1, targets[:, None])
            total -= float(said.double().sum())
            known = after[-1:]
            yield len(piece)
    finally:
        session.close()
    judged = ends[len(ids) - 1] - (ends[first - 1] if first else lead)
    return total / max(FEWEST, judged)


def _start(voice: Voice) -> tuple[tuple[int, ...], int]:
    """Ids that begin a document, and whether a space is put before a text there."""
    try:
        empty = voice.member.prompt("")
    except ConfigError:
        return (), 0
    if empty.encoder_ids is not None:
        raise ConfigError(
            f"member {voice.member.name!r} reads prompts with an encoder, which gives them no "
            "probability; weights='prompt' cannot judge it: give weights= in numbers"
        )
    return empty.ids, int(empty.text_start and voice.vocabulary.dummy_prefix)


def _unspelled(voice: Voice, ids: Sequence[int], ends: Sequence[int], first: int) -> int:
    """Bytes behind the unk id."""
    unk = voice.vocabulary.unk_id
    if unk is None:
        return 0
    starts = [0, *ends]
    return sum(ends[n] - starts[n] for n in range(first, len(ids)) if ids[n] == unk)
