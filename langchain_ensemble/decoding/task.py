"""One request as the loop gets it, and what one step chose for one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from langchain_ensemble.constraints.grammar import CompiledGrammar
from langchain_ensemble.decoding.draft_model import DraftVoice
from langchain_ensemble.decoding.online import by_regard
from langchain_ensemble.decoding.prefixes import PrefixCache
from langchain_ensemble.decoding.protocols import Sampling, Voice, Warn
from langchain_ensemble.decoding.rating import PromptWeights
from langchain_ensemble.decoding.records import Finish, TokenRecord
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.errors import ConfigError, ContextError
from langchain_ensemble.fusion.base import Fuser
from langchain_ensemble.members.base import MemberPrompt, MemberSession
from langchain_ensemble.params import RequestParams


@dataclass(frozen=True)
class Chosen:
    """What one step chose for one row, on the host.

    Attributes:
        key: Union key, or main's raw id with one voice; -1 where ``finish`` is set.
        record: The step; None where nothing could be chosen.
        finish: How the row ends with this choice: END, an opened call, a grammar that no member
            can go on with.
        evidence: How well each voice says it, where weights follow the answer and all were heard.
    """

    key: int
    record: TokenRecord | None
    finish: Finish | None = None
    evidence: tuple[float, ...] = ()


class Replays(Protocol):
    """Answers some questions, or parts of them, by replay."""

    def choose(self, question: Any) -> list[Chosen] | None:
        """One choice a row of a ``Question``; None: it is for others to answer."""

    def fuse(self, question: Any) -> Any:
        """What its voices say as a ``Fused``; None likewise."""


@dataclass(frozen=True)
class Opening:
    """How main opens a tool call; whether it does is main's decision alone.

    Attributes:
        ids: Main's control ids, each of which opens one wherever a character is complete.
        literal: Else main's canonical ids of the text that opens one, at the answer's start only.
    """

    ids: tuple[int, ...] = ()
    literal: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an opening that opens with nothing, or with two kinds of things."""
        if bool(self.ids) == bool(self.literal):
            raise ConfigError(
                f"an opening has ids={self.ids!r} and literal={self.literal!r}; give one of them"
            )


@dataclass(frozen=True)
class Held:
    """A session that has read something, handed from one phase of an answer to the next.

    Attributes:
        session: The session; it has one row.
        ids: What that row holds.
    """

    session: MemberSession
    ids: tuple[int, ...]


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
        grammar: What the answer must obey, compiled for every voice's vocabulary (equal
            vocabularies may share one object); None: anything goes.
        opening: How main opens a tool call, None: it cannot. Where a grammar holds, only in the
            place of the whole answer: before its first key.
        held: What each voice has read already; the common part with its prompt is not run again.
            One answer to one prompt only. The loop owns these sessions from now on.
        spelled: Main's control ids whose bytes are text here; one voice only.
        keep: Whether the sessions of finished rows are kept for a next phase.
        prefixes: What earlier requests have read, and where what this one has read goes; None:
            nothing is reused.
        draft: A small model that drafts, None: there is none.
        rating: Gives each prompt weights of its own; None: ``weights`` are those of all.
        online: Whether weights follow each answer (``online.py``), from ``weights`` on.
        regions: Fusions and choices that are replayed; None: none is.
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
    grammar: tuple[CompiledGrammar, ...] | None = None
    opening: Opening | None = None
    held: Sequence[Held | None] | None = None
    spelled: Mapping[int, bytes] = field(default_factory=dict)
    keep: bool = False
    prefixes: PrefixCache | None = None
    draft: DraftVoice | None = None
    rating: PromptWeights | None = None
    online: bool = False
    regions: Replays | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        count = len(self.voices)
        for name, given in (("grammar", self.grammar), ("held", self.held)):
            if given is not None and len(given) != count:
                raise ConfigError(f"{name} has {len(given)} entries for {count} voices")
        if self.spelled and count > 1:
            raise ConfigError(f"spelled= is for one voice; {count} voices are given")
        rows = len(self.prompts) * self.request.n
        if self.held is not None and rows > 1:
            raise ConfigError(f"held= is for one answer; {rows} are asked for")

    def shares(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """Weights of some rows, where each has its own; else nothing."""
        if self.rating is not None:
            return [self.rating.weights[row.number // self.request.n] for row in rows]
        return [by_regard(self.weights, row.regard) for row in rows] if self.online else []

    def own_weights(self, row: Row) -> dict[str, float]:
        """A row's own weights, by member; empty where all have the same, or there are none yet."""
        prompt = row.number // self.request.n
        if self.rating is not None and prompt >= len(self.rating.weights):
            return {}
        names = [voice.member.name for voice in self.voices]
        return {name: w for own in self.shares([row]) for name, w in zip(names, own, strict=True)}

    def drafted(self, read: Callable[[], Sequence[MemberPrompt]]) -> Task:
        """Let the draft model, if there is one, read its prompts.

        Args:
            read: Gives its prompt for every prompt of the request.

        Returns:
            The task; without the draft model, and with a warning, where a prompt does not fit it.
        """
        if self.draft is None or self.request.speculation == "off":
            return replace(self, draft=None)
        try:
            return replace(self, draft=replace(self.draft, prompts=read()))
        except ContextError as error:
            self.warn(f"draft model {self.draft.member.name!r} does not draft here: {error}")
            return replace(self, draft=None)
