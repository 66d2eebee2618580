"""How distributions become one: one file a method, tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.fusion.average import Average
from langchain_ensemble.fusion.base import Alignment, Fuser, Fusion, FusionContext, Needs
from langchain_ensemble.fusion.bytes import Bytes
from langchain_ensemble.fusion.context_aware import ContextAware
from langchain_ensemble.fusion.contrastive import Contrastive
from langchain_ensemble.fusion.deepen import Deepen
from langchain_ensemble.fusion.gac import Gac
from langchain_ensemble.fusion.proxy import Proxy
from langchain_ensemble.fusion.unite import Unite

Kind = (
    type[Average]
    | type[Bytes]
    | type[ContextAware]
    | type[Contrastive]
    | type[Deepen]
    | type[Gac]
    | type[Proxy]
    | type[Unite]
)

FUSIONS: dict[str, Kind] = {
    "average": Average,
    "bytes": Bytes,
    "context_aware": ContextAware,
    "contrastive": Contrastive,
    "deepen": Deepen,
    "gac": Gac,
    "proxy": Proxy,
    "unite": Unite,
}
"""The fusions that the package ships, by name."""


def get_fusion(spec: str | Mapping[str, Any]) -> Fusion:
    """Make a fusion from its name, or from its name and settings.

    Args:
        spec: A name of :data:`FUSIONS`, or ``{"name": ..., setting: ...}``.

    Returns:
        The fusion with its settings.

    Raises:
        ConfigError: The name or a setting is unknown, or a value is out of range.
    """
    settings: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if name not in FUSIONS:
        raise ConfigError(unknown_name("fusion", name, FUSIONS))
    kind = FUSIONS[name]
    known = [f.name for f in fields(kind)]
    for setting in settings:
        if setting not in known:
            raise ConfigError(unknown_name(f"setting of fusion={name!r}", setting, known))
    return kind(**settings)


def needs_of(fusion: Fusion, alignment: Alignment) -> Needs:
    """Say what a fusion needs of some members.

    Args:
        fusion: The fusion.
        alignment: Their keys.

    Returns:
        ``fusion.needs_of(alignment)`` where it has that, because it depends on them; else
        ``fusion.needs``.
    """
    ask = getattr(fusion, "needs_of", None)
    needs: Needs = fusion.needs if ask is None else ask(alignment)
    return needs


def prepare(fusion: Fusion, context: FusionContext) -> Fuser:
    """Make a fusion ready, and hold a user's own object to the protocol.

    Args:
        fusion: The fusion.
        context: What it may use.

    Returns:
        What it made.

    Raises:
        ConfigError: Something of the protocol is missing.
    """
    fuser = fusion.prepare(context)
    if not callable(fuser) or not callable(getattr(fuser, "score", None)):
        raise ConfigError(
            f"fusion {fusion.name!r}: prepare() gave a {type(fuser).__name__}; it must give an "
            "object that can be called and has score(distributions, weights, targets)"
        )
    return fuser


__all__ = [
    "FUSIONS",
    "Average",
    "Bytes",
    "ContextAware",
    "Contrastive",
    "Deepen",
    "Fusion",
    "Gac",
    "Proxy",
    "Unite",
    "get_fusion",
    "needs_of",
    "prepare",
]
