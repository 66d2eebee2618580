"""Index tensors that stand for strings: members' keys over one union.

The union space. Key ``u < V`` is main's token id ``u`` (``V`` is main's logits width);
keys ``V .. U-1`` are byte strings that main lacks, in byte order. END stands beside the keys.
So the first maximum over union keys is the tie rule of the project: main's id order, then bytes.
Main is always member 0 of an alignment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


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
        merged_ids: [D] ids whose key has more than one id, representatives first (derived).
        merged_group: [D] which of ``merged_into`` each of them is added onto (derived).
        merged_into: [G] the representatives of those keys (derived).
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
    merged_ids: Tensor = field(init=False, repr=False, compare=False)
    merged_group: Tensor = field(init=False, repr=False, compare=False)
    merged_into: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive once what every step would otherwise search for."""
        ids = torch.arange(self.width, device=self.representative.device)
        own = self.representative == ids
        spare = ((self.representative >= 0) & ~own).nonzero()[:, 0]
        into = torch.unique(self.representative[spare])
        merged = torch.cat([into, spare])
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "merged_ids", merged)
        object.__setattr__(self, "merged_into", into)
        group = torch.searchsorted(into, self.representative[merged])
        object.__setattr__(self, "merged_group", group)

    @property
    def space(self) -> TokenSpace:
        """The member's own token space."""
        return TokenSpace(f"member {self.name!r}", self.width)

    def to(self, device: torch.device) -> MemberKeys:
        """The same keys on another device."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        moved: dict[str, Any] = {k: v.to(device) for k, v in given.items() if torch.is_tensor(v)}
        return replace(self, **moved)


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
