"""The bytes of the union's keys, and which of them start with which: one range a key.

In byte order the keys that start with a key stand side by side, that key first. So "how much does a
member give to keys that start with t" is a sum over a range of ranks, whoever the member is.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import MemberKeys


class UnionKeys(list[bytes | None]):
    """Bytes of each union key, None where an id of main's is no key.

    What is asked of their order is worked out at the first question.
    """

    @cached_property
    def _ranges(self) -> Tensor:
        """[2, U] rank of each key in byte order, and of the first that does not start with it."""
        order = sorted((key, number) for number, key in enumerate(self) if key is not None)
        found = torch.full((2, len(self)), -1, dtype=torch.int64)
        rank, after = [-1] * len(self), [-1] * len(self)
        open_keys: list[tuple[bytes, int]] = []  # each starts with the one before
        for place, (key, number) in enumerate(order):
            while open_keys and not key.startswith(open_keys[-1][0]):
                after[open_keys.pop()[1]] = place
            open_keys.append((key, number))
            rank[number] = place
        for _, number in open_keys:
            after[number] = len(order)
        found[0], found[1] = torch.tensor(rank), torch.tensor(after)
        return found

    @cached_property
    def _moved(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _members(self) -> dict[int, tuple[MemberKeys, Tensor]]:
        return {}

    def ranges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the keys that start with a key are.

        Args:
            device: Where the tensors are wanted.

        Returns:
            [U] rank of each key in byte order (-1: no key), and [U] the rank after the last one
            that starts with it.
        """
        if device not in self._moved:
            with torch.inference_mode(False):
                self._moved[device] = self._ranges.to(device)
        rank, after = self._moved[device]
        return rank, after

    def ranks_of(self, keys: MemberKeys) -> Tensor:
        """A member's ids in the union's byte order.

        Args:
            keys: Its keys over this union.

        Returns:
            [V_i] rank of the key that each id represents, -1 where it represents none; on the
            device of ``keys``.
        """
        if id(keys) not in self._members:
            rank, _ = self.ranges(keys.own.device)
            with torch.inference_mode(False):
                ranks = torch.where(keys.own, rank[keys.to_union.clamp_min(0)], -1)
            self._members[id(keys)] = (keys, ranks)
        return self._members[id(keys)][1]
