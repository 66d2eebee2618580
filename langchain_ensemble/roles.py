"""Fusions in which every member has a role: who has which, checked before any weight is read.

A role is not a weight: an amateur is subtracted, however much it counts. Such a fusion takes one
member a role, none beside, and no ``weights=``. The first role is main's. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_ensemble.errors import ConfigError, unknown_name

ROLES: dict[str, tuple[str, ...]] = {
    "context_aware": ("with_context", "without"),
    "contrastive": ("expert", "amateur"),
    "proxy": ("base", "tuned", "untuned"),
}
"""Fusion → its roles, main's first."""


def places_of(fusion: str, given: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...]:
    """Find the member of each role.

    Args:
        fusion: A name of :data:`ROLES`.
        given: Role → a member's name; other settings are not read.
        names: The members' names, main first.

    Returns:
        One place in ``names`` a role; the first is 0.

    Raises:
        ConfigError: A role without a member, an unknown member, one with two roles or none, or a
            main that has not the first role.
    """
    roles = ROLES[fusion]
    listed = ", ".join(f'"{role}": <member>' for role in roles)
    for role in roles:
        if not given.get(role):
            raise ConfigError(
                f"fusion={fusion!r} does not say which member is {role!r}; write "
                f'fusion={{"name": "{fusion}", {listed}}}'
            )
        if given[role] not in names:
            raise ConfigError(unknown_name(f"{role!r} of fusion={fusion!r}", given[role], names))
    chosen = [str(given[role]) for role in roles]
    for place, name in enumerate(chosen):
        if name in chosen[:place]:
            first = roles[chosen.index(name)]
            raise ConfigError(
                f"fusion={fusion!r} has member {name!r} as {first!r} and as {roles[place]!r}; give "
                "each role a member of its own (members of one model share its weights)"
            )
    idle = [name for name in names if name not in chosen]
    if idle:
        raise ConfigError(
            f"member {idle[0]!r} has no role in fusion={fusion!r}, whose roles are "
            f"{', '.join(map(repr, roles))}; leave it out"
        )
    if chosen[0] != names[0]:
        raise ConfigError(
            f"main is {names[0]!r}, but fusion={fusion!r} answers as its {roles[0]!r} "
            f"{chosen[0]!r} does; give main={chosen[0]!r}"
        )
    return tuple(names.index(name) for name in chosen)


def check_roles(fusion: str | Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse roles that do not fit the members; of a fusion without roles, nothing.

    Args:
        fusion: Its name, or its name and settings.
        names: The members' names, main first.

    Raises:
        ConfigError: As :func:`places_of`.
    """
    settings = {"name": fusion} if isinstance(fusion, str) else fusion
    if settings["name"] in ROLES:
        places_of(settings["name"], settings, names)


def refuse_weights(fusion: Any, weights: Any) -> None:
    """Refuse weights beside roles.

    Args:
        fusion: A name, a mapping with one, or an object that has one.
        weights: As in a request.

    Raises:
        ConfigError: The fusion has roles, and the weights are not the default.
    """
    if not isinstance(fusion, str):
        fusion = fusion["name"] if isinstance(fusion, Mapping) else fusion.name
    if fusion in ROLES and weights not in (None, "uniform"):
        roles = ", ".join(map(repr, ROLES[fusion]))
        raise ConfigError(
            f"weights={weights!r} beside fusion={fusion!r}: its members have roles ({roles}), and "
            "roles are not weights. Leave weights= out; the fusion's own settings say how strong "
            "each role is"
        )
