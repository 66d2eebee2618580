"""Which tokens are DeePEn's anchors, and where each member's relative rows come from.

What is expensive is remembered under what it was made from: the embeddings' hash, the anchors' ids,
the settings and a format version. Knows embeddings and the disk cache's door
(``FusionContext.remember``); must not know the search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from langchain_ensemble.errors import VocabularyError
from langchain_ensemble.fusion.base import Alignment, FusionContext, MemberKeys
from langchain_ensemble.fusion.relative import (
    MEAN_ROWS,
    MULTIPLIER,
    evenly,
    mean_row,
    relative_representation,
)
from langchain_ensemble.fusion.rows import HotRows, Rows, StoredRows

FORMAT = 1
"""Version of what is stored; an older entry is built anew."""

TABLE_BYTES = 10**9
"""What one member's relative representation may take unless tables are asked for.

A table up to this size is kept (on disk, memory-mapped). Above it rows are computed, and this is
what hot rows and everything that goes with them may take (on disk: the mean row).
"""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def select_anchors(anchors: Literal["all"] | int | tuple[int, ...], alignment: Alignment) -> Tensor:
    """Choose the axes of the relative space.

    Byte-fallback ids are no anchors where another id of the member spells the same key.

    Args:
        anchors: As in :class:`Deepen`.
        alignment: The members' keys.

    Returns:
        [A] main's ids, ascending.

    Raises:
        VocabularyError: Too few common tokens, or a listed id is not common to all members.
    """
    common = alignment.common
    names = " and ".join(repr(keys.name) for keys in alignment.members)
    if not len(common):
        raise VocabularyError(
            f"members {names} share no common token; fusion='deepen' needs anchors. Use "
            "fusion='unite'."
        )
    if isinstance(anchors, tuple):
        wanted = torch.tensor(
            sorted(dict.fromkeys(anchors)), dtype=torch.int64, device=common.device
        )
        missing = wanted[~torch.isin(wanted, common)].tolist()
        if missing:
            raise VocabularyError(
                f"anchors lists id {missing[0]} of member {alignment.main.name!r}, which is no "
                f"token common to all members ({len(missing)} such ids, {len(common)} common "
                "tokens); leave them out, or use anchors='all'"
            )
        return wanted
    for keys in alignment.members:
        own = keys.from_union[common]
        twice = torch.zeros(keys.width, dtype=torch.bool, device=common.device)
        twice[keys.merged_into] = True
        common = common[~(keys.byte_fallback[own] & twice[own])]
    if isinstance(anchors, int):
        if len(common) < anchors:
            raise VocabularyError(
                f"members {names} share {len(common)} common tokens; fusion='deepen' was asked for "
                f"anchors={anchors}. Ask for fewer, or use fusion='unite'."
            )
        return evenly(common, anchors)
    return common


def member_rows(
    context: FusionContext,
    i: int,
    anchor_ids: Tensor,
    stored: bool | None,
    precision: str,
    least: int = 1,
) -> Rows:
    """Rows of one member: a table from the disk cache, or rows computed when asked for.

    Args:
        context: Embeddings, the disk cache and progress.
        i: The member.
        anchor_ids: [A] its ids of the anchors.
        stored: Whether to keep a table; None: where it is at most :data:`TABLE_BYTES`.
        precision: What a table is kept in, a name of :data:`DTYPES`.
        least: Rows that one position may read at once, which must fit whatever their size.

    Returns:
        The rows, on the device of the member's distribution.

    Raises:
        VocabularyError: An anchor has no embedding.
    """
    keys = context.alignment.members[i]
    dtype, device = DTYPES[precision], context.device_of(i)
    embeddings = context.embeddings(i).detach()[: keys.width]
    anchor_ids = anchor_ids.to(embeddings.device)
    _check_rows(embeddings, anchor_ids, keys)
    token_ids = keys.own.nonzero()[:, 0].to(embeddings.device)
    token_ids = token_ids[token_ids < len(embeddings)]
    key: dict[str, Any] = {
        "format": FORMAT,
        "embeddings": context.embedding_hashes(i),
        "rows": len(embeddings),
        "anchors": _hash(anchor_ids),
        "multiplier": MULTIPLIER,
    }
    stage = f"relative representation of {keys.name!r}"
    report: Callable[[int, int], None] | None = None
    if context.on_progress is not None:
        report = partial(context.on_progress, stage)
    size = len(embeddings) * len(anchor_ids) * dtype.itemsize
    if stored or (stored is None and size <= TABLE_BYTES):

        def table() -> dict[str, Tensor]:
            made = relative_representation(embeddings, anchor_ids, dtype=dtype, on_progress=report)
            return {"relative": made, "mean": _mean_of(made, token_ids)}

        found = context.remember(
            {**key, "kind": "relative", "precision": precision, "tokens": _hash(token_ids)},
            table,
        )
        return StoredRows(found["relative"].to(device), found["mean"], device, least=least)

    def mean() -> dict[str, Tensor]:
        return {"mean": mean_row(embeddings, anchor_ids, token_ids, report)}

    found = context.remember(
        {**key, "kind": "relative-mean", "sample": MEAN_ROWS, "tokens": _hash(token_ids)}, mean
    )
    return HotRows(embeddings, anchor_ids, found["mean"], device, budget=TABLE_BYTES, least=least)


def _mean_of(table: Tensor, token_ids: Tensor) -> Tensor:
    """Mean of some rows [A], without a copy of the table."""
    share = torch.zeros(len(table), device=table.device)
    share[token_ids] = 1.0 / len(token_ids)
    total = torch.zeros(table.shape[-1], device=table.device)
    for at in range(0, len(table), 1024):
        total += share[at : at + 1024] @ table[at : at + 1024].float()
    return total


def _check_rows(embeddings: Tensor, anchor_ids: Tensor, keys: MemberKeys) -> None:
    if int(anchor_ids.max()) >= len(embeddings):
        raise VocabularyError(
            f"member {keys.name!r} has {len(embeddings)} embedding rows but anchor id "
            f"{int(anchor_ids.max())}; its tokenizer names ids that the model does not have. Use "
            "the model's own tokenizer, or pass anchors= without them."
        )


def _hash(ids: Tensor) -> str:
    return hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()
