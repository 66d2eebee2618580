"""One member's settings, and the names that members get.

Pydantic and the standard library only; no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_serializer,
    model_validator,
)

from langchain_ensemble.errors import ConfigError, one_line, unknown_name


class Settings(BaseModel):
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


class Member(Settings):
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
    read = [(key, read_member(key, item)) for key, item in pairs]
    reserved = [name for key, member in read if (name := key or member.name)]
    for key, member in read:
        name = key or member.name or _free_name(member.model, reserved, members)
        if any(m.name == name for m in members):
            raise ConfigError(f"two members are called {name!r}; names must be unique")
        members.append(member.model_copy(update={"name": name}))
    return tuple(members)


def read_member(key: str | None, item: Any) -> Member:
    """Read one accepted form of a member.

    Args:
        key: Its name, where it has one.
        item: Id, folder, settings or Member.

    Returns:
        The member.

    Raises:
        ConfigError: A form that is not known.
    """
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
