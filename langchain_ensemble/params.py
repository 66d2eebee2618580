"""Settings, by lifetime: one member's, what is fixed for an ensemble, what may change per request.

Pydantic and the standard library only; no torch. All three classes are frozen and JSON-able.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from langchain_ensemble.errors import ConfigError, one_line, unknown_name

FUSIONS = ("average", "deepen", "gac", "unite")
"""Names of the fusions that the package ships (``fusion.FUSIONS`` holds the classes)."""

DEFAULT_MAX_TOKENS = 256
DEFAULT_MAX_CONCURRENT = 64
DEFAULT_PREFIX_CACHE_GB = 2.0


class _Settings(BaseModel):
    """Frozen settings whose errors are ours: one line, with the nearest known name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **data: Any) -> None:
        for name in data:
            if name not in type(self).model_fields:
                raise ConfigError(
                    unknown_name(f"{type(self).__name__} setting", name, type(self).model_fields)
                )
        problem = None
        try:
            super().__init__(**data)
        except ValidationError as error:
            problem = one_line(type(self).__name__, error.errors())
        if problem is not None:  # not chained: pydantic's error would keep its owner alive
            raise ConfigError(problem)

    def __repr_args__(self) -> Any:
        """Show what was set, not every default."""
        for name, value in super().__repr_args__():
            if name is None or value != type(self).model_fields[name].default:
                yield name, value


class Member(_Settings):
    """One member: a model, and the view that this member adds to its weights.

    Attributes:
        model: Hub id or local folder.
        name: Name in the ensemble; derived from ``model`` when not given.
        revision: Branch, tag or commit on the Hub.
        token: Hub access token; never written to disk caches, logs or ``to_config``.
        dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda:1"``, ``"mps"`` …; not together with ``device_map``.
        device_map: As in transformers: ``"auto"`` or module name → device.
        quantization: ``"bnb-4bit"``, ``"bnb-8bit"``, ``"torchao-int8"`` …, or ``"gguf:<file>"``;
            a checkpoint that is already quantised needs none.
        attn_implementation: ``"sdpa"`` (default) or ``"eager"``.
        adapter: PEFT adapter on top of the weights, Hub id or folder.
        trust_remote_code: Whether the repository may run its own code. Off.
        local_files_only: Never touch the network.
        chat_template: Jinja text that replaces the tokenizer's chat template.
        system: System prompt of this member's view.
        forward: How its forwards run: ``"eager"``, ``"graphs"`` (CUDA graphs) or ``"compiled"``;
            default: graphs on CUDA, eager elsewhere.
    """

    model: str
    name: str | None = None
    revision: str | None = None
    token: SecretStr | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    device_map: str | dict[str, str | int] | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    adapter: str | None = None
    trust_remote_code: bool | None = None
    local_files_only: bool | None = None
    chat_template: str | None = None
    system: str | None = None
    forward: Literal["eager", "graphs", "compiled"] | None = None

    def __init__(self, model: str | os.PathLike[str] | None = None, /, **data: Any) -> None:
        if model is not None:
            if "model" in data:
                raise ConfigError(f"Member: model given twice, {model!r} and {data['model']!r}")
            data["model"] = model
        if isinstance(data.get("model"), os.PathLike):
            data["model"] = os.fspath(data["model"])
        if not data.get("model"):
            raise ConfigError(
                f"member {data.get('name') or ''!r} has no model; give a Hub id or a folder"
            )
        super().__init__(**data)

    @field_serializer("token", when_used="json")
    def _hide_token(self, token: SecretStr | None) -> None:
        return None

    @model_validator(mode="after")
    def _one_placement(self) -> Member:
        if self.device is not None and self.device_map is not None:
            raise ValueError(
                f"member {self.name or self.model!r} has device={self.device!r} and "
                f"device_map={self.device_map!r}; give one of them"
            )
        return self


class EnsembleParams(_Settings):
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
    """

    members: tuple[Member, ...]
    fusion: str | dict[str, Any] = "deepen"
    main: str | None = None
    open_boundaries: Literal["discount", "vote"] = "discount"
    draft: Member | None = None
    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    max_queue: int | None = None
    kv_cache_gb: float | None = None
    prefix_cache_gb: float = DEFAULT_PREFIX_CACHE_GB

    @field_validator("members", mode="before")
    @classmethod
    def _name_members(cls, value: Any) -> Any:
        return name_members(value)

    @field_validator("draft", mode="before")
    @classmethod
    def _read_draft(cls, value: Any) -> Any:
        return None if value is None else _read_member(None, value)

    @model_validator(mode="after")
    def _known_names(self) -> EnsembleParams:
        names = self.names
        if self.main is not None and self.main not in names:
            raise ValueError(unknown_name("main member", self.main, names))
        check_fusion_name(self.fusion)
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


class RequestParams(_Settings):
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
        weights: ``"uniform"``, name → weight, or one weight a member in order; sum 1.
        logprobs: Whether per-token logprobs are returned.
        speculation: ``"auto"`` lets members draft for each other where it pays; ``"off"`` runs
            every member for every token; ``"on"`` drafts whether it pays or not. The answer is
            the same.
        cache_salt: Requests reuse each other's prefixes only under the same salt.
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
    weights: str | dict[str, float] | tuple[float, ...] = "uniform"
    logprobs: bool = False
    speculation: Literal["auto", "off", "on"] = "auto"
    cache_salt: str | None = None

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
                not isinstance(self.weights, str) or self.weights == "uniform",
                "'uniform', a mapping name -> weight, or a list",
            ),
        )
        _check(self, rules)
        return self


def _check(owner: object, rules: Sequence[tuple[str, bool, str]]) -> None:
    """Refuse the first setting that breaks its rule: (name, whether it is good, what is)."""
    for name, good, needed in rules:
        if not good:
            raise ValueError(f"{name} is {getattr(owner, name)!r}; it must be {needed}")


def derive_name(model: str) -> str:
    """Derive a member's name from its model: the last part of the id or path."""
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or model


def name_members(value: Any) -> tuple[Member, ...]:
    """Read every accepted form of ``members=`` and give each one a unique name.

    Args:
        value: A mapping name → (id | settings | Member), or a sequence of the same.

    Returns:
        The members, each with its name.

    Raises:
        ConfigError: No members, a name given twice, or a form that is not known.
    """
    if isinstance(value, (str, Member, os.PathLike)) or not isinstance(value, (Mapping, Sequence)):
        raise ConfigError(
            f"members is {value!r}; give a list of Hub ids or folders, or a mapping name -> id"
        )
    pairs: list[tuple[str | None, Any]] = (
        list(value.items()) if isinstance(value, Mapping) else [(None, v) for v in value]
    )
    for key, _ in pairs:
        if key is not None and (not isinstance(key, str) or not key):
            raise ConfigError(f"a member is called {key!r}; a name must be a non-empty text")
    if not pairs:
        raise ConfigError("members is empty; an ensemble needs at least one member")
    members: list[Member] = []
    read = [(key, _read_member(key, item)) for key, item in pairs]
    reserved = [name for key, member in read if (name := key or member.name)]
    for key, member in read:
        name = key or member.name or _free_name(member.model, reserved, members)
        if any(m.name == name for m in members):
            raise ConfigError(f"two members are called {name!r}; names must be unique")
        members.append(member.model_copy(update={"name": name}))
    return tuple(members)


def _read_member(key: str | None, item: Any) -> Member:
    if isinstance(item, Member):
        member = item
    elif isinstance(item, (str, os.PathLike)):
        member = Member(item, **({} if key is None else {"name": key}))
    elif isinstance(item, Mapping):
        member = Member(**({"name": key, **item} if key is not None else item))
    else:
        raise ConfigError(
            f"member {key or item!r} is {item!r}; give a Hub id, a folder or Member(...)"
        )
    if key is not None and member.name not in (None, key):
        raise ConfigError(f"member {key!r} also calls itself {member.name!r}; give one name")
    return member


def _free_name(model: str, reserved: Sequence[str], members: Sequence[Member]) -> str:
    """Derive a name that no other member has."""
    base = name = derive_name(model)
    taken = [*reserved, *(m.name for m in members)]
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def check_fusion_name(fusion: str | Mapping[str, Any]) -> None:
    """Refuse a fusion name that the package does not ship."""
    name = fusion if isinstance(fusion, str) else fusion.get("name")
    if name not in FUSIONS:
        raise ConfigError(unknown_name("fusion", name, FUSIONS))
