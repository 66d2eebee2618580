"""What one answer of a turn has cost, over its phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from langchain_ensemble.decoding.prefixes import shared_length
from langchain_ensemble.decoding.records import Usage
from langchain_ensemble.decoding.task import Task


@dataclass
class Count:
    """One answer's running counts.

    Attributes:
        steps: Decode steps so far, thinking left out.
    """

    steps: int = 0
    _prompt: int | None = None
    _completion: int = 0
    _thought: int = 0
    _thought_steps: int = 0
    _fused: int = 0
    _members: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _cached: dict[str, int] = field(default_factory=dict)
    _weights: dict[str, float] = field(default_factory=dict)

    def add(self, usage: Usage, reused: Mapping[str, int]) -> None:
        """Add a phase that wrote a part of the answer.

        Args:
            usage: The phase's own counts.
            reused: Ids of its prompt that a member held already and did not read again, by name.
        """
        self._read(usage, reused)
        if self._prompt is None:
            self._prompt = usage.prompt_tokens
        self._completion += usage.completion_tokens
        self.steps += usage.steps
        self._fused += usage.fused_steps
        self._weights = usage.own_weights or self._weights

    def add_thought(self, usage: Usage, *, main: bool) -> None:
        """Add a phase in which one member thought.

        Args:
            usage: The phase's own counts.
            main: Whether main thought: its ids count as output.
        """
        self._read(usage, {})
        self._thought_steps += usage.steps
        if main:
            self._prompt = usage.prompt_tokens
            self._completion += usage.completion_tokens
            self._thought += usage.completion_tokens

    def _read(self, usage: Usage, reused: Mapping[str, int]) -> None:
        for name, count in usage.member_tokens.items():
            self._members[name] = self._members.get(name, 0) + count - reused.get(name, 0)
        for name, count in usage.cached_tokens.items():  # later phases begin with this one's ids
            self._cached.setdefault(name, count)
        for name, seconds in usage.member_seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def usage(self) -> Usage:
        """The sums."""
        return Usage(
            prompt_tokens=self._prompt or 0,
            completion_tokens=self._completion,
            steps=self.steps + self._thought_steps,
            fused_steps=self._fused,
            member_tokens=dict(self._members),
            thought_tokens=self._thought,
            member_seconds=dict(self._seconds),
            cached_tokens=dict(self._cached),
            own_weights=dict(self._weights),
        )


def reused_ids(task: Task) -> dict[str, int]:
    """How many ids of a phase's prompts its members held already, by name.

    Args:
        task: A task of one prompt.

    Returns:
        The lengths of the common prefixes.
    """
    held = task.held or [None] * len(task.voices)
    return {
        voice.member.name: 0 if own is None else shared_length(own.ids, prompt.ids)
        for voice, own, prompt in zip(task.voices, held, task.prompts[0], strict=True)
    }
