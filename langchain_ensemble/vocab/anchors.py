"""Which common tokens are the axes of the relative space (DeePEn, arXiv:2404.12715, section 3.2).

The reference code takes every string that all vocabularies spell alike, special tokens included,
in the order of a ``set``. Here anchors are byte keys that all members have, by main's id; control
tokens are never among them, and an id that spells bytes a second time is not one either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, VocabularyError
from langchain_ensemble.vocab.alignment import Aligned

Anchors = Literal["all"] | int | Sequence[str | bytes | int]


def choose_anchors(aligned: Aligned, anchors: Anchors = "all") -> Tensor:
    """Choose anchor tokens among the common ones.

    Args:
        aligned: The members' alignment.
        anchors: ``"all"`` common tokens; a number of them, evenly spaced by main's id (the first
            is always taken); or a list of texts, bytes or main ids.

    Returns:
        [A] int64 main ids, ascending.

    Raises:
        ConfigError: The number is below 1, or an entry is no text, bytes or id.
        VocabularyError: More are wanted than there are, or a listed token is not common.
    """
    common = aligned.alignment.common
    if anchors == "all":
        return common
    if isinstance(anchors, (bool, str, bytes)):
        raise ConfigError(f"anchors={anchors!r} is unknown. Use 'all', a number or a list.")
    if isinstance(anchors, int):
        return _evenly(common, anchors)
    is_common = set(common.tolist())  # only asked, never listed
    chosen = sorted({_main_id(aligned, anchor): None for anchor in anchors})
    lacking = [i for i in chosen if i not in is_common]
    if lacking or not chosen:
        missing = [a for a in anchors if _main_id(aligned, a) in lacking]
        raise VocabularyError(
            f"anchors={list(anchors)!r}: "
            + (f"{missing!r} are no tokens of every member" if chosen else "the list is empty")
            + f"; {len(common)} tokens are common. Leave them out, or use anchors='all'."
        )
    return torch.tensor(chosen, dtype=torch.int64, device=common.device)


def _evenly(common: Tensor, count: int) -> Tensor:
    if count < 1:
        raise ConfigError(f"anchors={count} is too few; at least 1 is needed")
    if count > len(common):
        raise VocabularyError(
            f"anchors={count}, but the members share only {len(common)} common tokens. "
            f"Use anchors='all'."
        )
    picked = torch.arange(count, device=common.device) * len(common) // count
    return common[picked]


def _main_id(aligned: Aligned, anchor: str | bytes | int) -> int:
    """Main's id for a listed anchor, -1 where main has none."""
    if isinstance(anchor, bool) or not isinstance(anchor, (str, bytes, int)):
        raise ConfigError(f"anchors has {anchor!r}; each must be a text, bytes or a main id")
    main = aligned.alignment.main
    if isinstance(anchor, int):
        inside = 0 <= anchor < main.width
        return int(main.representative[anchor]) if inside else -1
    key = anchor.encode() if isinstance(anchor, str) else anchor
    found = aligned.key_of.get(key, -1)
    return found if found < main.width else -1
