"""Index tensors that stand for strings: members' keys over one union.

The union space. Key ``u < V`` is main's token id ``u`` (``V`` is main's logits width);
keys ``V .. U-1`` are byte strings that main lacks, in byte order. END stands beside the keys.
So the first maximum over union keys is the tie rule of the project: main's id order, then bytes.
Main is always member 0 of an alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


def at_home(tensor: Tensor, home: torch.device) -> Tensor:
    """A tensor on a device; to ask first costs less than an operation that moves nothing."""
    return tensor if tensor.device == home else tensor.to(home)


@dataclass(frozen=True)
class TokenSpace:
    """What the columns of a distribution mean.

    Attributes:
        name: ``"member 'qwen'"`` for a member's own ids, ``"union"`` for union keys.
        width: Number of columns of the dense form.
    """

    name: str
    width: int


@dataclass(frozen=True)
class Told:
    """Every member's distribution in main's keys, as a fusion heard it.

    Attributes:
        keys: [N, V] of each member, main first; probabilities, or their logarithms.
        ends: [N] of END, likewise.
        logs: Whether they are logarithms.
    """

    keys: Sequence[Tensor]
    ends: Sequence[Tensor]
    logs: bool

    def of(self, keys: Tensor) -> Tensor:
        """Probabilities of one union key a row.

        Args:
            keys: [N], -1: END; keys that main lacks have none.

        Returns:
            [M, N].
        """
        inside = (keys >= 0) & (keys < self.keys[0].shape[-1])
        at = torch.where(inside, keys, 0)[:, None]
        said = torch.stack([one.gather(1, at)[:, 0] for one in self.keys])
        said = torch.where(keys < 0, torch.stack(list(self.ends)), said)
        said = said.exp() if self.logs else said
        return torch.where(inside | (keys < 0), said, 0.0)


@dataclass(frozen=True)
class MemberKeys:
    """One member's ids, seen as keys. All tensors int64 on the fusion device.

    Attributes:
        name: The member's name.
        width: ``V_i``, the columns its model emits.
        representative: [V_i] the id that stands for the key of each id (the encoder's choice);
            itself where it is the representative, -1 where the id has no key (control, unused).
        to_union: [V_i] union key of each id, -1 where it has none.
        from_union: [U] the member's representative id for each union key, -1 where it lacks it.
        longest_prefix: [U] the member's representative id of its longest key that is a prefix of
            the union key (the key itself where it has it), -1 where no key is.
        end_ids: [E] ids that end the member's turn; their probability is pooled into END.
        byte_fallback: [V_i] bool, ids whose only spelling is a byte token of a fallback
            (``<0x41>``); they are no anchors unless nothing else spells the key.
        own: [V_i] bool, ids that represent their key (derived).
        speaks: [V_i] bool, ids that have a key or end the turn (derived).
        merged_ids: [D] ids whose key has more than one id, representatives first (derived).
        merged_group: [G, most] ids of each of those keys, the representative first, filled up with
            an id that never has a probability: a control id's, or ``width`` (derived).
        merged_into: [G] the representatives of those keys (derived).
        merged_beyond: Whether ``merged_group`` is filled up with ``width`` (derived).
    """

    name: str
    width: int
    representative: Tensor
    to_union: Tensor
    from_union: Tensor
    longest_prefix: Tensor
    end_ids: Tensor
    byte_fallback: Tensor
    own: Tensor = field(init=False, repr=False, compare=False)
    speaks: Tensor = field(init=False, repr=False, compare=False)
    merged_ids: Tensor = field(init=False, repr=False, compare=False)
    merged_group: Tensor = field(init=False, repr=False, compare=False)
    merged_into: Tensor = field(init=False, repr=False, compare=False)
    merged_beyond: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive once what every step would otherwise search for."""
        own = self.representative == torch.arange(self.width, device=self.representative.device)
        spare = ((self.representative >= 0) & ~own).nonzero()[:, 0]
        into = torch.unique(self.representative[spare])
        speaks = (self.representative >= 0).index_fill(0, self.end_ids, True)
        silent = (self.representative < 0).nonzero()[:, 0]
        filler = int(silent[0]) if len(silent) else self.width
        group = _groups(into, self.representative, spare, filler)
        derived = {
            "own": own,
            "speaks": speaks,
            "merged_ids": torch.cat([into, spare]),
            "merged_group": group,
            "merged_into": into,
            "merged_beyond": bool((group == self.width).any()),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def space(self) -> TokenSpace:
        """The member's own token space."""
        return TokenSpace(f"member {self.name!r}", self.width)

    def to(self, device: torch.device) -> MemberKeys:
        """The same keys on another device."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        moved: dict[str, Any] = {k: v.to(device) for k, v in given.items() if torch.is_tensor(v)}
        return replace(self, **moved)


def _groups(into: Tensor, representative: Tensor, spare: Tensor, filler: int) -> Tensor:
    """Ids of every key that has several, [G, most]."""
    members: dict[int, list[int]] = {head: [head] for head in into.tolist()}
    for token, head in zip(spare.tolist(), representative[spare].tolist(), strict=True):
        members[head].append(token)
    most = max((len(ids) for ids in members.values()), default=2)
    filled = [ids + [filler] * (most - len(ids)) for ids in members.values()]
    return torch.tensor(filled, dtype=torch.int64, device=into.device).reshape(-1, most)


@dataclass(frozen=True)
class Alignment:
    """All members' keys over one union; main is ``members[0]``.

    Attributes:
        members: One entry a member, main first.
        union_size: ``U``.
        common: [C] main ids (representatives) of the keys that every member has, ascending.
        hash: Content hash of everything above, for the disk cache.
    """

    members: tuple[MemberKeys, ...]
    union_size: int
    common: Tensor
    hash: str

    @property
    def main(self) -> MemberKeys:
        """Main's keys."""
        return self.members[0]

    @property
    def space(self) -> TokenSpace:
        """The union space of every fused distribution."""
        return TokenSpace("union", self.union_size)
