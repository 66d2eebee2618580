"""Masks as engines give them, one bit per id, as the boolean rows that the decode loop wants."""

from __future__ import annotations

import torch
from torch import Tensor

# of every byte its eight bits, lowest first, as eight booleans in the place of one int64
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).bool().view(torch.int64).view(-1)


def unpacked(words: Tensor, size: int) -> Tensor:
    """Spread the bits of a mask.

    Args:
        words: int32 or uint8, on the CPU, contiguous; bit 0 of word 0 is id 0.
        size: How many ids are wanted.

    Returns:
        [size] bool.
    """
    return _BITS[words.view(torch.uint8).int()].view(torch.bool)[:size]
