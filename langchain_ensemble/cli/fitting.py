"""How inspected members fit each other: common tokens, and what every fusion would need.

Knows vocabularies and the fusions' sizes; must not know how a report looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from langchain_ensemble.cli.inspection import Inspected
from langchain_ensemble.errors import EnsembleError
from langchain_ensemble.fusion import (
    FUSIONS,
    Average,
    Bytes,
    Deepen,
    Fusion,
    Gac,
    Unite,
    get_fusion,
    needs_of,
)
from langchain_ensemble.fusion.deepen import DENSE_CELLS, TABLE_BYTES, select_anchors
from langchain_ensemble.roles import ROLES, places_of
from langchain_ensemble.vocab.alignment import Aligned, align, check_common


def pairs(members: Sequence[Inspected]) -> list[dict[str, Any]]:
    """Count the common tokens of every two members.

    Args:
        members: Main first.

    Returns:
        One dict a pair: ``members``, ``tokens``, ``share`` of each one's own tokens, and whether
        their tokenizers are the ``same``.
    """
    found = []
    for one, other in combinations(members, 2):
        a, b = one.vocabulary.key_of, other.vocabulary.key_of
        common = sum(key in b for key in a)
        found.append(
            {
                "members": [one.name, other.name],
                "tokens": common,
                "share": [common / len(a), common / len(b)],
                "same": one.vocabulary.content_hash == other.vocabulary.content_hash,
            }
        )
    return found


def union(members: Sequence[Inspected]) -> Aligned:
    """Put the members' tokens over one union."""
    return align([(member.name, member.vocabulary) for member in members])


def fusions(
    members: Sequence[Inspected], aligned: Aligned, chosen: str | dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Tell what every fusion would need of these members; one with roles only where it is chosen.

    Args:
        members: Main first.
        aligned: Their union.
        chosen: The ensemble's fusion; its settings count, the others have their defaults.

    Returns:
        Name → ``fits``, ``problem`` (None if it fits), and the sizes that matter to it.
    """
    made = get_fusion(chosen)
    told: dict[str, dict[str, Any]] = {}
    for name in FUSIONS:
        if name in ROLES and made.name != name:
            continue  # nobody has said who has which role
        fusion = made if made.name == name else get_fusion(name)
        try:
            check_common(aligned, fusion.needs.min_common, name)
            told[name] = {"fits": True, "problem": None, **_needs(fusion, members, aligned)}
        except EnsembleError as error:
            told[name] = {"fits": False, "problem": str(error)}
    return told


def _needs(fusion: Fusion, members: Sequence[Inspected], aligned: Aligned) -> dict[str, Any]:
    if fusion.name in ROLES:
        return _roles(fusion, members, aligned)
    tell: dict[str, Callable[[], dict[str, Any]]] = {
        Bytes.name: lambda: {"trees": {m.name: len(m.vocabulary.key_of) for m in members}},
        Average.name: lambda: _average(members),
        Deepen.name: lambda: _deepen(fusion, members, aligned),
        Gac.name: lambda: {"union": _union_size(aligned)},
        Unite.name: lambda: {"candidates": fusion.settings()["union_k"] * len(members) + 1},
    }
    return tell[fusion.name]()


def _roles(fusion: Fusion, members: Sequence[Inspected], aligned: Aligned) -> dict[str, Any]:
    """Who has which role, and whether the members are compared by their tokens or by bytes."""
    given = fusion.settings()
    places_of(fusion.name, given, [member.name for member in members])
    over = "bytes" if needs_of(fusion, aligned.alignment).paths else "tokens"
    return {"roles": {role: given[role] for role in ROLES[fusion.name]}, "over": over}


def _union_size(aligned: Aligned) -> int:
    """Keys of the union; columns of main that are no key (padding, control ids) do not count."""
    return len(aligned.key_of)


def _average(members: Sequence[Inspected]) -> dict[str, Any]:
    """Main's tokens, and how many of each auxiliary's fall on a shorter one of main's."""
    own = members[0].vocabulary.key_of
    return {
        "tokens": len(own),
        "foreign": {
            member.name: sum(key not in own for key in member.vocabulary.key_of)
            for member in members[1:]
        },
    }


def _deepen(fusion: Any, members: Sequence[Inspected], aligned: Aligned) -> dict[str, Any]:
    """Anchors, and for each member the size of its rows: a table, or made when asked for."""
    settings: Deepen = fusion
    count = len(select_anchors(settings.anchors, aligned.alignment))
    widest = max(member.vocabulary.width for member in members)
    dense = settings.dense if settings.dense is not None else widest * count <= DENSE_CELLS
    itemsize = 4 if settings.precision == "float32" else 2
    told = {}
    for member in members:
        rows = min(member.info.embedding_rows, member.vocabulary.width)
        size = rows * count * itemsize
        table = dense or (settings.dense is None and size <= TABLE_BYTES)
        told[member.name] = {
            "rows": [rows, count],
            "table": size,
            "kept": "table" if table else "on the fly",
            "anchor_embeddings": count * member.info.embedding_width * 4,
        }
    return {"anchors": count, "search": "dense" if dense else "support", "members": told}
