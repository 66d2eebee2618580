"""From the members' next bytes to one key: a step goes on as long as nobody must be asked again.

``r(c | s)`` is what the fusion makes of the members' next bytes. A step gives a union key ``u``
with the probability ``r(u) = prod_k r(u_k | s u_<k)``: whichever strings make up the step's
choices, as long as none begins another and every byte leads to one, the text has the distribution
of ``r`` byte by byte; longer choices only save forwards. They are made so:

* Begin with the single bytes and END. A string that is no key (main could not hold it) is opened:
  it gives way to the strings one byte longer.
* Open the likeliest choice, as long as one of its own continuations is then the likeliest of all.
  So the greedy choice always begins with the likeliest byte, then the byte that is likeliest after
  it, and so on: greedy text does not depend on where steps end.
* Do not open where a token ends of a member with a say: it would have to read the answer up to
  there to say what follows. More than :data:`LOOSE` of the weighted share ending there stops the
  step; less is left out (who goes on speaks for the member).

:data:`LOOSE` is the approximation. What is laid out here has a fixed number of tensor operations
for each byte of a step, at most :data:`LONGEST`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import FusedDistribution, FusionContext, MemberDistribution
from langchain_ensemble.fusion.paths import BYTES, Paths, children, fresh, label_key
from langchain_ensemble.fusion.tries import Trie
from langchain_ensemble.fusion.voices import LOG_TINY

LOOSE = 0.03
"""Weighted share of ended tokens, or of bytes that no key goes on with, that a step leaves out."""

TIGHT = math.log1p(-LOOSE)

RARE = math.log(LOOSE / 10)
"""A string that is no key is opened where it is likelier than this; else it cannot be chosen."""

LONGEST = 12
"""Strings that a step opens at most."""

Mix = Callable[[Tensor, Tensor], Tensor]
"""``over_bytes``: [M, N, 257] log-distributions and [N, M] weights to [N, 257]."""


def heard(said: Sequence[Tensor], weights: Tensor, mix: Mix) -> Tensor:
    """Mix what members say; those that say nothing give their weight to the others.

    Args:
        said: One [N, 257] of log-weights a member, not normalised.
        weights: [N, M].
        mix: The fusion.

    Returns:
        [N, 257] log-probabilities, -inf where nobody speaks.
    """
    totals = [one.logsumexp(-1, keepdim=True) for one in said]
    mute = torch.cat(totals, -1) == -torch.inf  # [N, M]
    parts = [
        one - total.masked_fill(total == -torch.inf, 0.0)
        for one, total in zip(said, totals, strict=True)
    ]
    share = weights.masked_fill(mute, 0.0)
    total = share.sum(-1, keepdim=True)
    share = share / total.clamp_min(1e-30)
    share[:, :1] += total == 0  # nobody with weight speaks: main alone
    return mix(torch.stack(parts), share)


class Walk:
    """One step's choices in N rows while they are laid out."""

    def __init__(
        self, tries: Sequence[Trie], union: Trie, paths: Sequence[Paths], weights: Tensor, mix: Mix
    ) -> None:
        """Begin with the single bytes and END.

        Args:
            tries: The members' trees.
            union: The tree of union keys that main can hold.
            paths: Where the members are.
            weights: [N, M].
            mix: The fusion.
        """
        self._tries, self._union, self._paths = tries, union, paths
        self._weights, self._mix = weights, mix
        self._on_host = weights.device.type == "cpu"  # there nothing has to be waited for
        self._row = torch.arange(len(weights), device=weights.device)
        self._columns: list[list[Tensor]] = [[] for _ in tries]  # [member][opening] [N, S, 256]
        self._depths: list[Tensor] = []  # [opening] [N] bytes of the strings it made
        self._values: list[Tensor] = []  # [opening] [N, 256] log r of those that are choices
        self._nodes: list[Tensor] = []  # [opening] [N, 256] where they are in the union's tree
        self._keys: list[Tensor] = []  # [opening] [N, 256] their union keys, -1: none
        said = self._ask(paths)
        mixed = heard(said, weights, mix)
        self.end = mixed[:, BYTES]
        root = self._row.new_full((len(weights),), union.root)
        self._put(mixed[:, :BYTES], root, torch.zeros_like(root))

    def lay_out(self) -> None:
        """Open what is worth it."""
        for _ in range(LONGEST):
            opened = self._open()
            if self._on_host and not bool(opened.any()):
                return  # nothing changes any more

    def choices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Union keys [N, C] ascending (-1 at the end), their log-probabilities, and END's [N]."""
        keys, values = torch.cat(self._keys, -1), torch.cat(self._values, -1)
        keys = torch.where(values == -torch.inf, -1, keys)
        values = values.masked_fill(keys < 0, -torch.inf)
        total = torch.logaddexp(values.logsumexp(-1), self.end)
        total = total.masked_fill(total == -torch.inf, 0.0)
        beyond = torch.iinfo(keys.dtype).max
        order = torch.where(keys < 0, beyond, keys).argsort(-1)
        return keys.gather(-1, order), values.gather(-1, order) - total[:, None], self.end - total

    def _ask(self, paths: Sequence[Paths]) -> list[Tensor]:
        """What every member says next; remembers where each byte leads."""
        said = []
        for number, (trie, path) in enumerate(zip(self._tries, paths, strict=True)):
            values, columns = path.following(trie)
            said.append(values)
            self._columns[number].append(columns)
        return said

    def _put(self, values: Tensor, node: Tensor, depth: Tensor) -> None:
        """Add the strings one byte longer than one whose union node and length are given."""
        nodes = children(self._union, node, depth)  # [N, 256]
        known = nodes != self._union.nothing
        self._values.append(values.masked_fill(~known, -torch.inf))
        self._nodes.append(nodes)
        self._depths.append(depth + 1)
        key = label_key(self._union, nodes, (depth + 1)[:, None])
        order = torch.nn.functional.pad(self._union.order, (0, self._union.inner + 1), value=-1)
        self._keys.append(order[key])

    def _open(self) -> Tensor:
        """Open one choice a row, where it is worth it; says in which rows [N]."""
        values = torch.cat(self._values, -1)  # [N, C]
        keys = torch.cat(self._keys, -1)
        urgent, place = values.masked_fill(keys >= 0, -torch.inf).max(-1)
        best, leader = values.max(-1)
        forced = urgent > RARE
        place = torch.where(forced, place, leader)
        number, byte = place // BYTES, place % BYTES
        depth = torch.stack(self._depths)[number, self._row]
        node = torch.stack(self._nodes)[number, self._row, byte]
        paths = [
            path.down(torch.stack(columns)[number, self._row, :, byte], depth)
            for path, columns in zip(self._paths, self._columns, strict=True)
        ]
        ended = [path.ended(trie) for path, trie in zip(paths, self._tries, strict=True)]
        loose = (self._weights * torch.stack(ended, -1)).sum(-1) <= LOOSE
        may = forced | (loose & (best >= self.end))
        if self._on_host and not bool(may.any()):
            return may
        mixed = heard(self._ask(paths), self._weights, self._mix)[:, :BYTES]
        self._put(mixed, node, depth)
        kept = self._values[-1].logsumexp(-1, keepdim=True)  # [N, 1] what goes on with some key
        there = values.gather(-1, place[:, None])  # [N, 1] log r of the string itself
        new = self._values[-1] + (there - kept.masked_fill(kept == -torch.inf, 0.0))
        here = torch.arange(values.shape[-1], device=place.device) == place[:, None]
        others = values.masked_fill(here, -torch.inf).amax(-1)
        leads = new.amax(-1) >= torch.maximum(others, self.end)
        opened = forced | (may & leads & (kept[:, 0] >= TIGHT))
        left = values.masked_fill(here & opened[:, None], -torch.inf)
        self._values = [
            *torch.split(left, BYTES, -1),
            new.masked_fill(~opened[:, None], -torch.inf),
        ]
        return opened


class Walker(ABC):
    """A fusion of bytes as a fusion of keys: what every byte-level fuser is."""

    def __init__(self, context: FusionContext) -> None:
        """Take the trees of keys.

        Args:
            context: Of a fusion that needs paths.

        Raises:
            ConfigError: The context has no trees.
        """
        if context.tries is None or context.union_trie is None:
            raise ConfigError("a fusion over bytes needs the trees of keys: Needs(paths=True)")
        self._tries = [trie.to(context.device) for trie in context.tries]
        self._union = context.union_trie.to(context.device)
        self._space = context.alignment.space

    @abstractmethod
    def over_bytes(self, logprobs: Tensor, weights: Tensor) -> Tensor:
        """The members' bytes together.

        Args:
            logprobs: [M, N, 257], 256 bytes and END.
            weights: [N, M], rows sum to one.

        Returns:
            [N, 257], normalised.
        """

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability that a step gives a union key; a text is scored by its bytes."""
        return self(distributions, weights).logprob_of(targets).clamp_min(LOG_TINY)

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Lay out a step's choices; see :class:`~langchain_ensemble.fusion.base.Fuser`.

        Args:
            distributions: One a member, main first; without ``paths``, a member is taken to have
                ended a token where it stands.
            weights: [N, M].

        Returns:
            The choices.
        """
        run = [(i, one) for i, one in enumerate(distributions) if one is not None]
        tries = [self._tries[i] for i, _ in run]
        paths = [
            fresh(trie, one.logprobs, one.end) if one.paths is None else one.paths
            for trie, (_, one) in zip(tries, run, strict=True)
        ]
        places = [i for i, _ in run]

        def mix(said: Tensor, share: Tensor) -> Tensor:
            if len(places) == len(distributions):
                return self.over_bytes(said, share)
            logs = said.new_full((len(distributions), *said.shape[1:]), -torch.inf)
            wide = share.new_zeros(len(share), len(distributions))
            logs[places], wide[:, places] = said, share
            return self.over_bytes(logs, wide)

        walk = Walk(tries, self._union, paths, weights[:, places], mix)
        walk.lay_out()
        keys, values, end = walk.choices()
        return FusedDistribution(self._space, values, end, keys)
