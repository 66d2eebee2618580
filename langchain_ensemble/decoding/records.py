"""What decoding hands out: pieces of answers, per-token records, whole answers, scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


Wish = tuple[bytes, float]
"""A key's bytes (empty: END) and its probability."""


@dataclass(frozen=True)
class TokenTrace:
    """What was to choose from in one step.

    Attributes:
        wishes: Each voice's own best keys, best first. By name.
        fused: The best of what was chosen from, best first.
        weights: Each voice's weight in this step. By name.
        at: When it was chosen, in seconds of a clock of which only differences mean anything.
    """

    wishes: dict[str, tuple[Wish, ...]]
    fused: tuple[Wish, ...]
    weights: dict[str, float]
    at: float


@dataclass(frozen=True)
class TokenRecord:
    """One decode step of one row.

    Attributes:
        id: Main's id, or None when main has no single id for the chosen key; END is None too.
        bytes: The chosen key's bytes (empty for END).
        logprob: Log-probability under the fused distribution, before processors, nats; None where
            only the best key was looked for (greedy, without ``logprobs``, where a fusion can save
            work by that).
        members: Each voice's own log-probability of the chosen key; None: it has no say or the
            key has probability 0 from it. By name.
        fused: Whether more than one member had a say in this step.
        gate: Why main spoke alone, as the gate says it (``"sure"``, ``"consensus"``,
            ``"boundary"``); None: it did not, or not because of a gate.
        disagreement: How far apart the voices are, in [0, 1] (0: they agree); None: nobody asked,
            or there is one voice.
        overruled: Whether main by itself would rather have said another key; None: nobody asked, or
            there is one voice.
        drafted: Whether the key was drafted before it was chosen.
        trace: What was to choose from, where the request asks for it.
    """

    id: int | None
    bytes: bytes
    logprob: float | None
    members: dict[str, float | None]
    fused: bool
    gate: str | None = None
    disagreement: float | None = None
    overruled: bool | None = None
    drafted: bool = False
    trace: TokenTrace | None = None


@dataclass(frozen=True)
class Finish:
    """How one row ended.

    Attributes:
        reason: ``"stop"`` (END, a stop string, an opened call) or ``"length"``.
        stop: The stop string that matched, None for END or length.
        dropped: Left-over bytes of an incomplete character at the end.
        full_member: Name of the member whose context was full, when that ended the row.
        unfinished: Whether a grammar or a tool call was cut before it was complete.
        opened: Main's ids that opened a tool call, where that ended the row ("stop").
    """

    reason: FinishReason
    stop: str | None = None
    dropped: bytes = b""
    full_member: str | None = None
    unfinished: bool = False
    opened: tuple[int, ...] | None = None


Channel = Literal["text", "thought", "call"]
"""What a piece belongs to: the answer, a member's private thinking, a tool call."""


@dataclass(frozen=True)
class CallDelta:
    """A fragment of a tool call.

    Attributes:
        index: Number of the call in the answer, from 0.
        name: The tool's name, on the call's first fragment only.
        arguments: New characters of the arguments' JSON.
        done: Set on the call's last fragment, when the call is complete and its JSON is valid.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    done: bool = False


@dataclass(frozen=True)
class Piece:
    """New text of one row.

    Attributes:
        row: Row number: prompt ``row // n``, answer ``row % n``.
        text: New text, may be empty; the pieces of a row and a channel joined are its answer.
        tokens: The decode steps since the last piece of the row.
        finish: Set on the row's last piece.
        channel: What ``text`` belongs to; raw answers have ``"text"`` only.
        member: Whose thought it is, for ``channel="thought"``.
        calls: Fragments of tool calls; ``text`` is empty then.
    """

    row: int
    text: str
    tokens: tuple[TokenRecord, ...] = ()
    finish: Finish | None = None
    channel: Channel = "text"
    member: str | None = None
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Counts of one row, in main's ids.

    Attributes:
        prompt_tokens: Main's ids of the prompt.
        completion_tokens: Main's ids of the answer.
        steps: Decode steps.
        fused_steps: Decode steps in which more than one member had a say.
        member_tokens: Ids that each member read, prompt and answer, re-runs included. By name.
            The same whatever other requests have read: ``cached_tokens`` are counted.
        thought_tokens: Those of ``completion_tokens`` that are main's thinking.
        member_seconds: How long each member's forwards took; those of all rows of a request, which
            run together. By name. Two usages are equal whatever it is.
        cached_tokens: Ids of the prompt that each member did not run, because another request had.
            By name. Two usages are equal whatever it is.
        own_weights: Weights of the members that the prompt gave (``weights="prompt"``), or with
            which the answer ended (``"online"``), else empty. By name. Two usages are equal
            whatever it is: its last digits depend on how forwards were batched.
    """

    prompt_tokens: int
    completion_tokens: int
    steps: int
    fused_steps: int
    member_tokens: dict[str, int] = field(default_factory=dict)
    thought_tokens: int = 0
    member_seconds: dict[str, float] = field(default_factory=dict, compare=False)
    cached_tokens: dict[str, int] = field(default_factory=dict, compare=False)
    own_weights: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    text: str
    tokens: tuple[TokenRecord, ...]
    finish: Finish
    usage: Usage


@dataclass(frozen=True)
class Score:
    """A text's log-likelihood under the fused members, teacher-forced along main's ids.

    Attributes:
        logprob: Nats; finite for every fusion.
        num_bytes: UTF-8 bytes of the text.
        bits_per_byte: ``-logprob / (num_bytes ln 2)``; 0.0 for an empty text.
        tokens: Main's ids of the text.
        is_greedy: Whether every token was the fused argmax.
        windows: How often the fullest member had to start over (1: never).
    """

    logprob: float
    num_bytes: int
    bits_per_byte: float
    tokens: int
    is_greedy: bool
    windows: int
