"""A member's best keys, and what it says of some keys, on the device where its distribution is.

Only names of keys and probabilities of candidates leave that device: nothing as wide as a
vocabulary does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Alignment, MemberDistribution, MemberKeys, at_home

STEP = 2.0**-47
"""Relative distance of two equal probabilities in float64 whose names are neighbours.

Two float32 numbers differ by 2**-24 or more of themselves: names below 2**22 never change their
order.
"""


NOBODY = -1e30
"""Below the logarithm of any probability; half of it is above it, and as impossible."""


@dataclass(frozen=True)
class Stand:
    """What every member has of some candidates, all [M, N, S].

    Attributes:
        at: Its id of the candidate, or of its longest prefix; -1 where there is none.
        any_key: 0 where there is one, else -inf.
        own_key: 0 where it has the candidate itself, else -inf.
        floor: ``NOBODY``, or half of it where it has the candidate itself.
    """

    at: Tensor
    any_key: Tensor
    own_key: Tensor
    floor: Tensor


class Lookup:
    """Index tables of an alignment with one more entry, for slots that hold no key."""

    def __init__(self, alignment: Alignment) -> None:
        """Make the tables."""
        self._size = alignment.union_size
        self._members = {(i, keys.own.device): keys for i, keys in enumerate(alignment.members)}
        self._alignment = alignment
        self._apart: dict[tuple[int, torch.device], Tensor] = {}  # a member's tie order
        own = torch.stack([_longer(keys.from_union) for keys in alignment.members])
        prefix = torch.stack([_longer(keys.longest_prefix) for keys in alignment.members])
        has = own >= 0
        self._at = torch.where(has, own, prefix)  # [M, U + 1]
        zero = torch.zeros(own.shape, device=own.device)
        self._bars = torch.cat(  # [3 M, U + 1]
            [
                zero.masked_fill(self._at < 0, -torch.inf),
                zero.masked_fill(~has, -torch.inf),
                torch.where(has, NOBODY / 2, NOBODY),
            ]
        )

    def best(self, i: int, one: MemberDistribution, k: int) -> Tensor:
        """Union keys of a member's best ids.

        Args:
            i: The member.
            one: Its distribution, dense or sparse.
            k: How many; ties for the last place go to the smaller union keys.

        Returns:
            [N, k] in no order, the union's size in slots that hold none.
        """
        keys = self._keys(i, one.logprobs.device)
        names, logprobs = keys.to_union, one.logprobs
        order = self._tie_order(i, keys)
        if one.ids is not None:
            listed = one.ids.clamp_min(0)
            names, order = names[listed], order[listed]
        missing = k - logprobs.shape[-1]
        if missing > 0:
            logprobs = torch.nn.functional.pad(logprobs, (0, missing), value=-torch.inf)
            names = torch.nn.functional.pad(names, (0, missing))
            order = torch.nn.functional.pad(order, (0, missing), value=1.0)
        top, where = top_in_order(logprobs, order, k)
        found = names[where] if names.dim() == 1 else names.gather(-1, where)
        return torch.where(top > -torch.inf, found, self._size)  # NaN names nothing

    def stand(self, candidates: Tensor) -> Stand:
        """What every member has of the candidates.

        Args:
            candidates: [N, S] union keys on the fusion's device; the union's size is none.
        """
        flat, count = candidates.flatten(), len(self._at)
        at = self._at.index_select(1, flat).view(count, *candidates.shape)
        bars = self._bars.index_select(1, flat).view(3, count, *candidates.shape)
        return Stand(at, *bars.unbind(0))

    def said(self, distributions: Sequence[MemberDistribution], stand: Stand) -> Tensor:
        """Every member's log-probabilities of its ids of the candidates.

        Args:
            distributions: One a member, dense or sparse, each on its own device.
            stand: What they have of the candidates.

        Returns:
            [M, N, S] on the fusion's device; -inf where a member has no id.
        """
        home, inside = stand.at.device, stand.at.clamp_min(0).unbind(0)
        found = []
        for i, one in enumerate(distributions):
            ids = at_home(inside[i], one.logprobs.device)
            if one.ids is None:
                got = one.logprobs.gather(-1, ids)
            else:
                got = one.logprobs_at(ids, self._keys(i, ids.device))
            found.append(at_home(got, home))
        return torch.stack(found) + stand.any_key

    def _keys(self, i: int, device: torch.device) -> MemberKeys:
        """A member's keys on a device, moved there once."""
        if (i, device) not in self._members:
            self._members[i, device] = self._alignment.members[i].to(device)
        return self._members[i, device]

    def _tie_order(self, i: int, keys: MemberKeys) -> Tensor:
        """[V_i] what a member's log-probabilities are multiplied with to break ties."""
        place = (i, keys.own.device)
        if place not in self._apart:
            names = keys.to_union.clamp_min(0)
            no_float64 = place[1].type == "mps"
            self._apart[place] = names.float() if no_float64 else 1 + names.double() * STEP
        return self._apart[place]


def top_in_order(logprobs: Tensor, order: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` greatest of each row, ties in a given order.

    Args:
        logprobs: [N, V] float32, all below 0 but for one of a row at most.
        order: [V] or [N, V]: float64 factors ``1 + name * STEP``; or float32 names, where the
            device has no float64.
        k: How many, at most V.

    Returns:
        Values and columns, [N, k].
    """
    if order.dtype == torch.float64:
        top, where = (logprobs * order).topk(k, dim=-1)
        return top, where
    top, where = logprobs.topk(k, dim=-1)
    last = top[:, -1:]
    above = top > last
    tied = torch.where(logprobs == last, -order, -torch.inf).topk(k, dim=-1).indices
    slot = torch.arange(k, device=top.device) - above.sum(-1, keepdim=True)
    where = torch.where(above, where, tied.gather(-1, slot.clamp_min(0)))
    return logprobs.gather(-1, where), where


def _longer(table: Tensor) -> Tensor:
    return torch.nn.functional.pad(table, (0, 1), value=-1)
