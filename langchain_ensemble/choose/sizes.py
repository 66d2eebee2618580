"""How much memory candidates need, alone and together. Pure data and functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.memory import HEADROOM

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)?\s*", re.IGNORECASE)
_UNITS = {"gb": 1e9, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20}


@dataclass(frozen=True)
class Size:
    """What a candidate costs.

    Attributes:
        weights: Bytes of its weights as they are held, without an adapter; None: not known.
        own: Bytes of its adapter, and of the KV cache of one longest question and answer.
        parameters: Numbers in its weights: a token's cost, next to another candidate's.
        template: Whether it has a chat template.
        stamp: Commit on the Hub, or names, sizes and times of the files in its folder: what tells
            one state of the weights from another.
        shared: Equal for candidates that share their weights in memory.
    """

    weights: int | None
    own: int
    parameters: int
    template: bool = False
    stamp: str = ""
    shared: str = ""

    @property
    def memory(self) -> int | None:
        """Bytes that it needs alone: weights, some room beside, the cache of one answer."""
        return joint_memory([self])


def joint_memory(sizes: Sequence[Size]) -> int | None:
    """Bytes that candidates need together; shared weights count once. None: not known.

    Args:
        sizes: Of the candidates.
    """
    weights: dict[str | int, int] = {}
    for place, size in enumerate(sizes):
        if size.weights is None:
            return None
        weights[size.shared or place] = size.weights
    return sum(int(size * HEADROOM) for size in weights.values()) + sum(size.own for size in sizes)


def read_vram(vram: str | float | None) -> int | None:
    """Read a memory limit.

    Args:
        vram: ``"24GB"``, ``"24GiB"``, ``"800MB"``, or a number of GB (1e9 bytes).

    Returns:
        Bytes; None where there is no limit.

    Raises:
        ConfigError: Neither.
    """
    if vram is None:
        return None
    found = _SIZE.fullmatch(str(vram))
    size = int(float(found[1]) * _UNITS[(found[2] or "GB").lower()]) if found else 0
    if size <= 0:
        raise ConfigError(f"vram is {vram!r}; write it as '24GB' or '24GiB', or as a number of GB")
    return size
