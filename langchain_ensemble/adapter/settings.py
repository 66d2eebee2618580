"""What a caller may write: names read with care, defaults for members, the identity in caches.

Pure functions; no torch, no LangChain. Errors are :class:`ConfigError` on one line and never show
an access token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.params import FUSIONS, EnsembleParams, Member, RequestParams, name_members

MEMBER_DEFAULTS = (
    "dtype",
    "device",
    "device_map",
    "quantization",
    "attn_implementation",
    "trust_remote_code",
    "local_files_only",
    "forward",
)
"""Settings of a member that an ensemble may give for all members that do not say otherwise."""

SERVING = ("draft", "max_concurrent", "max_queue", "kv_cache_gb", "prefix_cache_gb")
"""What decides how fast answers come, and nothing of what they say."""

FIXED = (
    *("members", "fusion", "main", "open_boundaries", "calibration"),
    *(*MEMBER_DEFAULTS, *SERVING, "hf_token"),
)
"""What cannot change from one call to the next."""

PER_CALL = tuple(RequestParams.model_fields)
"""What may change from one call to the next."""

CONFIG_FIELDS = (*(name for name in FIXED if name not in ("members", "hf_token")), *PER_CALL)
"""What a configuration holds beside members; no secret."""

FUSION_SETTINGS = {
    "average": ("mean",),
    "bytes": ("mean",),
    "context_aware": ("with_context", "without", "strength"),
    "contrastive": ("expert", "amateur", "alpha", "beta"),
    "deepen": (
        *("search_steps", "search_lr", "anchors"),
        *("support_mass", "support_cap", "dense", "precision"),
    ),
    "gac": ("threshold",),
    "proxy": ("base", "tuned", "untuned", "scale"),
    "unite": ("union_k",),
}
"""Names of each fusion's settings; what they may be is checked by the fusion, with torch."""

ALIASES = {"max_new_tokens": "max_tokens"}


def read_settings(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Check the names of settings, resolve aliases, bring members and fusion into one form.

    Args:
        owner: Class name for messages.
        given: What the caller wrote.
        known: The names that exist.

    Returns:
        A new dict.

    Raises:
        ConfigError: An unknown name (with the nearest), a name beside its alias, a form of
            ``members``, ``fusion`` or ``hf_token`` that is not known.
    """
    settings = _without_aliases(owner, given)
    names = list(known)
    for name in settings:
        if name not in names:
            raise ConfigError(unknown_name(f"{owner} setting", name, [*names, *ALIASES]))
    if "members" in settings:
        settings["members"] = name_members(settings["members"])
    if settings.get("draft") is not None:
        (settings["draft"],) = name_members([settings["draft"]])
    if "fusion" in settings:
        settings["fusion"] = read_fusion(settings["fusion"])
    if "stop" in settings and settings["stop"] is None:
        settings["stop"] = ()
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    token = settings.get("hf_token")
    if isinstance(token, str):
        settings["hf_token"] = SecretStr(token)
    elif not isinstance(token, SecretStr | None):
        raise ConfigError(f"hf_token is a {type(token).__name__}; give a string or a SecretStr")
    return settings


def read_overrides(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names of a call's keyword arguments and resolve aliases.

    Args:
        owner: Class name for messages.
        given: The call's keyword arguments, without LangChain's own.

    Returns:
        A new dict of per-call settings.

    Raises:
        ConfigError: A name that is fixed for an ensemble, or unknown (with the nearest).
    """
    overrides = _without_aliases(owner, given)
    for name in overrides:
        if name in FIXED:
            raise ConfigError(
                f"{name} is fixed for an ensemble and cannot change in a call; make another "
                f"{owner} with {name}=... (equal members share their weights). "
                f"A call may change: {', '.join(PER_CALL)}."
            )
        if name not in PER_CALL:
            raise ConfigError(unknown_name("argument of a call", name, [*PER_CALL, *ALIASES]))
    return overrides


def _without_aliases(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(given)
    for alias, name in ALIASES.items():
        if alias in settings:
            if name in settings:
                raise ConfigError(
                    f"{owner} got {name}={settings[name]!r} and {alias}={settings[alias]!r}, "
                    "which mean the same; give one of them"
                )
            settings[name] = settings.pop(alias)
    return settings


def read_fusion(fusion: Any) -> Any:
    """Bring ``fusion=`` into a JSON form where it has one.

    Args:
        fusion: A name, ``{"name": ..., setting: ...}``, or a fusion object.

    Returns:
        A name or a dict; a fusion object of the user's own as it is.

    Raises:
        ConfigError: Something that is none of them.
    """
    if isinstance(fusion, str):
        return fusion
    if isinstance(fusion, Mapping):
        name = fusion.get("name")
        for setting in fusion:
            if setting != "name" and name in FUSION_SETTINGS:
                known = FUSION_SETTINGS[name]
                if setting not in known:
                    raise ConfigError(unknown_name(f"setting of fusion={name!r}", setting, known))
        return dict(fusion)
    missing = [n for n in ("name", "needs", "settings", "prepare") if not hasattr(fusion, n)]
    if missing or isinstance(fusion, type):
        raise ConfigError(
            f"fusion is {fusion!r}; give one of {', '.join(map(repr, FUSIONS))}, a dict with "
            '"name" and settings, or an object with name, needs, settings() and prepare()'
        )
    if fusion.name in FUSIONS and type(fusion).__module__.startswith("langchain_ensemble.fusion."):
        return {"name": fusion.name, **fusion.settings()}
    return fusion


def ensemble_params(
    members: Any, fusion: Any, defaults: Mapping[str, Any], rest: Mapping[str, Any]
) -> EnsembleParams:
    """Give what is fixed for the ensemble, defaults written into the members.

    Args:
        members: Any accepted form.
        fusion: A name, a dict, or a fusion object (which travels beside the result).
        defaults: Values of :data:`MEMBER_DEFAULTS` and ``token``; None where there is none.
        rest: ``main``, ``open_boundaries``, ``calibration`` and the values of :data:`SERVING`.

    Returns:
        The settings.

    Raises:
        ConfigError: They contradict each other.
    """
    named = tuple(_with_defaults(member, defaults) for member in name_members(members))
    fixed: dict[str, Any] = {"members": named, **rest}
    if fixed["draft"] is not None:
        fixed["draft"] = _with_defaults(fixed["draft"], defaults)
    if isinstance(fusion, str | dict):
        fixed["fusion"] = fusion
    return EnsembleParams(**fixed)


def _with_defaults(member: Member, defaults: Mapping[str, Any]) -> Member:
    placed = member.device is not None or member.device_map is not None
    update = {
        name: value
        for name, value in defaults.items()
        if value is not None
        and getattr(member, name) is None
        and not (placed and name in ("device", "device_map"))
    }
    return member.model_copy(update=update) if update else member


def member_config(member: Member) -> dict[str, Any]:
    """Write a member as JSON, without its name and without its token."""
    return member.model_dump(mode="json", exclude={"name", "token"}, exclude_none=True)


def plain(value: Any) -> Any:
    """Write a setting as JSON."""
    if isinstance(value, Member):
        return value.model_dump(mode="json", exclude={"token"}, exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


def joined_stop(*stops: Sequence[str] | str | None) -> tuple[str, ...]:
    """Join stop strings of the field and of the call, each once, in order."""
    listed = [[stop] if isinstance(stop, str) else list(stop or ()) for stop in stops]
    return tuple(dict.fromkeys(text for stop in listed for text in stop))


def fusion_name(fusion: Any) -> str:
    """Name a fusion in any of its forms."""
    if isinstance(fusion, str):
        return fusion
    return str(fusion["name"] if isinstance(fusion, dict) else fusion.name)


def fusion_identity(fusion: Any, token: str) -> Any:
    """Identify a fusion in a cache key, as JSON.

    Args:
        fusion: A name, a dict, or a fusion object.
        token: What tells this object from every other one.
    """
    if isinstance(fusion, str):
        return {"name": fusion}
    if isinstance(fusion, dict):
        return fusion
    settings = json.loads(json.dumps(fusion.settings(), default=repr))
    kind = f"{type(fusion).__module__}.{type(fusion).__qualname__}"
    return {"name": fusion.name, "settings": settings, "class": kind, "object": token}
