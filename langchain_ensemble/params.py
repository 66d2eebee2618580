"""Settings, by lifetime: one member's, what is fixed for an ensemble, what may change per request.

Pydantic and the standard library only; no torch. All classes are frozen and JSON-able.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.member import Member, Settings, derive_name, name_members, read_member
from langchain_ensemble.roles import check_roles

__all__ = [
    "DEFAULT_FUSION",
    "DEFAULT_MAX_CONCURRENT",
    "DEFAULT_MAX_TOKENS",
    "DEFAULT_PREFIX_CACHE_GB",
    "FUSIONS",
    "GATES",
    "WEIGHT_RULES",
    "EnsembleParams",
    "Member",
    "RequestParams",
    "check_fusion_name",
    "derive_name",
    "name_members",
]

FUSIONS = (
    *("average", "bytes", "context_aware", "contrastive", "deepen", "gac", "proxy"),
    "unite",
)
"""Names of the fusions that the package ships (``fusion.FUSIONS`` holds the classes)."""

GATES = {"always": (), "threshold": ("below",), "safe": ("consensus", "sharpen")}
"""Rules that say at which positions members are fused, and the names of their settings."""

Gate = str | Mapping[str, Any]
"""A gate in either of its forms."""

WEIGHT_RULES = ("uniform", "calibrated", "prompt", "online")
"""Weights that are not numbers: equal ones, those of the calibration, by how well each member said
the prompt, by how well it said the answer so far."""

DEFAULT_FUSION: dict[str, Any] = {"name": "average", "mean": "arithmetic"}
"""With online weights never worse than the better member, as measured (benchmarks/quality.md)."""

DEFAULT_MAX_TOKENS = 256
DEFAULT_MAX_CONCURRENT = 64
DEFAULT_PREFIX_CACHE_GB = 2.0


class EnsembleParams(Settings):
    """What is fixed for an ensemble: members, fusion, main, and defaults for all members.

    Attributes:
        members: Named members in the user's order.
        fusion: A name of :data:`FUSIONS`, or ``{"name": ..., setting: ...}``. A fusion object of
            the user's is handed to :class:`~langchain_ensemble.ensemble.Ensemble` beside this.
        main: Name of the member whose vocabulary the answer is read in; default: the first.
        open_boundaries: ``"discount"`` weighs an auxiliary by the probability that it ends a token
            where main does; ``"vote"`` lets it vote everywhere.
        draft: A small model that proposes drafts and has no say in the answer.
        max_concurrent: Answers that are decoded together at most; further requests wait.
        max_queue: Requests that wait at most; one more is refused. None: no limit.
        kv_cache_gb: Bytes (in 1e9) of KV caches at most, kept prefixes included; requests wait
            until they fit. None: what the devices hold.
        prefix_cache_gb: Bytes (in 1e9) of KV caches kept for prompts that begin alike; 0 is off.
        calibration: File that ``calibrate`` wrote for these members; None: there is none.
    """

    members: tuple[Member, ...]
    fusion: str | dict[str, Any] = DEFAULT_FUSION
    main: str | None = None
    open_boundaries: Literal["discount", "vote"] = "discount"
    draft: Member | None = None
    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    max_queue: int | None = None
    kv_cache_gb: float | None = None
    prefix_cache_gb: float = DEFAULT_PREFIX_CACHE_GB
    calibration: str | None = None

    @field_validator("members", mode="before")
    @classmethod
    def _name_members(cls, value: Any) -> Any:
        return name_members(value)

    @field_validator("draft", mode="before")
    @classmethod
    def _read_draft(cls, value: Any) -> Any:
        return None if value is None else read_member(None, value)

    @model_validator(mode="after")
    def _known_names(self) -> EnsembleParams:
        names = self.names
        if self.main is not None and self.main not in names:
            raise ValueError(unknown_name("main member", self.main, names))
        check_fusion_name(self.fusion)
        check_roles(self.fusion, [m.name or "" for m in self.ordered])
        rules: tuple[tuple[str, bool, str], ...] = (
            ("max_concurrent", self.max_concurrent >= 1, "at least 1"),
            ("max_queue", self.max_queue is None or self.max_queue >= 0, "at least 0, or None"),
            (
                "kv_cache_gb",
                self.kv_cache_gb is None or 0 < self.kv_cache_gb < math.inf,
                "above 0, or None",
            ),
            ("prefix_cache_gb", 0 <= self.prefix_cache_gb < math.inf, "at least 0 (0 is off)"),
        )
        _check(self, rules)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names in the user's order."""
        return tuple(m.name or "" for m in self.members)

    @property
    def main_name(self) -> str:
        """The main member's name."""
        return self.main or self.names[0]

    @property
    def ordered(self) -> tuple[Member, ...]:
        """The members with main first; the engine works in this order."""
        first = [m for m in self.members if m.name == self.main_name]
        return (*first, *(m for m in self.members if m.name != self.main_name))

    @property
    def fusion_name(self) -> str:
        """The fusion's name."""
        return self.fusion if isinstance(self.fusion, str) else str(self.fusion["name"])


class RequestParams(Settings):
    """What may change from one request to the next.

    Attributes:
        max_tokens: Decode steps at most; None: what the context leaves.
        temperature: 0 is greedy.
        top_p: Nucleus of the fused distribution; 1 is off.
        top_k: Most probable keys kept; 0 is off. Not UniTE's ``union_k``.
        min_p: Keys below ``min_p`` times the best are dropped; 0 is off.
        repetition_penalty: Over main's ids of prompt and answer; 1 is off.
        seed: Seed of a local generator; None draws a fresh one.
        n: Answers per prompt.
        stop: Texts before which the answer ends.
        timeout: Seconds until :class:`~langchain_ensemble.errors.DeadlineError`.
        weights: A rule of :data:`WEIGHT_RULES`, name → weight, or one weight a member in order;
            sum 1. None: those of the calibration where there is one; else ``"online"`` where the
            fusion tells how it heard each member (``average``), else uniform.
        logprobs: Whether per-token logprobs are returned.
        speculation: ``"auto"`` lets members draft for each other where it pays; ``"off"`` runs
            every member for every token; ``"on"`` drafts whether it pays or not. The answer is
            the same.
        cache_salt: Requests reuse each other's prefixes only under the same salt.
        gate: Where members are fused: a name of :data:`GATES`, or ``{"name": ..., setting: ...}``.
        contexts: Name → a text that this member alone reads before the prompt.
        trace: Whether what each member wanted is kept for every token.
        abstain_below: Answers that the members are less sure of than this are refused with an
            :class:`~langchain_ensemble.errors.AbstainedError`; None: none is.
    """

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    weights: str | dict[str, float] | tuple[float, ...] | None = None
    logprobs: bool = False
    speculation: Literal["auto", "off", "on"] = "auto"
    cache_salt: str | None = None
    gate: str | dict[str, Any] = "always"
    contexts: dict[str, str] | None = None
    trace: bool = False
    abstain_below: float | None = None

    @model_validator(mode="after")
    def _in_range(self) -> RequestParams:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1, or None"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("n", self.n >= 1, "at least 1"),
            ("timeout", self.timeout is None or self.timeout > 0, "above 0 seconds, or None"),
            ("stop", all(self.stop), "non-empty strings"),
            (
                "weights",
                not isinstance(self.weights, str) or self.weights in WEIGHT_RULES,
                f"one of {', '.join(map(repr, WEIGHT_RULES))}, a mapping name -> weight, or a list",
            ),
            (
                "abstain_below",
                self.abstain_below is None or 0 <= self.abstain_below <= 1,
                "in [0, 1], or None",
            ),
            (
                "abstain_below",
                self.abstain_below is None or self.n == 1,
                f"None with n={self.n}: it refuses one answer, and that asks for several; each of "
                "them has its confidence in the metadata",
            ),
        )
        _check(self, rules)
        check_gate(self.gate)
        return self


def _check(owner: object, rules: Sequence[tuple[str, bool, str]]) -> None:
    """Refuse the first setting that breaks its rule: (name, whether it is good, what is)."""
    for name, good, needed in rules:
        if not good:
            raise ValueError(f"{name} is {getattr(owner, name)!r}; it must be {needed}")


def check_fusion_name(fusion: str | Mapping[str, Any]) -> None:
    """Refuse a fusion name that the package does not ship."""
    name = fusion if isinstance(fusion, str) else fusion.get("name")
    if name not in FUSIONS:
        raise ConfigError(unknown_name("fusion", name, FUSIONS))


def check_gate(gate: Gate) -> None:
    """Refuse a gate, or a setting of one, that does not exist or has no such value."""
    name = gate if isinstance(gate, str) else gate.get("name")
    if name not in GATES:
        raise ConfigError(unknown_name("gate", name, GATES))
    settings: Mapping[str, Any] = {} if isinstance(gate, str) else gate
    for setting, value in settings.items():
        if setting != "name" and setting not in GATES[name]:
            raise ConfigError(unknown_name(f"setting of gate={name!r}", setting, GATES[name]))
        if setting != "name":
            _check_gate_setting(name, setting, value)


def _check_gate_setting(gate: str, setting: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    good, needed = {
        "below": (number and 0 < value <= 1, "a probability in (0, 1]"),
        "consensus": (number and 0 < value < 1, "a probability in (0, 1)"),
        "sharpen": (isinstance(value, bool), "True or False"),
    }[setting]
    if not good:
        raise ConfigError(f"gate={gate!r} has {setting}={value!r}; it must be {needed}")
