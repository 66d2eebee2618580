"""One request as the loop gets it, and what one step chose for one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.decoding.protocols import Sampling, Voice, Warn
from langchain_ensemble.decoding.records import TokenRecord
from langchain_ensemble.fusion.base import Fuser
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import RequestParams


@dataclass(frozen=True)
class Chosen:
    """What one step chose for one row, on the host."""

    key: int  # union key, or main's raw id with one voice; -1 is END
    record: TokenRecord


@dataclass(frozen=True)
class Task:
    """One request, ready to be decoded.

    Attributes:
        voices: Members with weight, main first (main also at weight 0).
        weights: One a voice.
        places: Position of each voice among the members that ``fuser`` was built for.
        num_members: How many those are.
        fuser: The fusion; None with one voice.
        key_bytes: Bytes of every union key (None: no key); empty with one voice.
        prompts: [prompt][voice].
        request: The request's settings.
        sampling: Processors of the request.
        weigh_boundaries: Whether open boundaries discount auxiliaries.
        warn: Called with a sentence when something is worth knowing.
    """

    voices: tuple[Voice, ...]
    weights: tuple[float, ...]
    places: tuple[int, ...]
    num_members: int
    fuser: Fuser | None
    key_bytes: Sequence[bytes | None]
    prompts: Sequence[Sequence[MemberPrompt]]
    request: RequestParams
    sampling: Sampling
    weigh_boundaries: bool
    warn: Warn
