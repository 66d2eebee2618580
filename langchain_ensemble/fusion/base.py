"""What a fusion sees and gives: distributions that carry their token space.

Everything here is tensors. Strings were turned into index tensors by ``vocab`` (``keys.py``:
:class:`MemberKeys`, :class:`Alignment` and the union space); no fusion ever sees a token's text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from langchain_ensemble.fusion.keys import Alignment, MemberKeys, TokenSpace, Told, at_home
from langchain_ensemble.fusion.paths import Paths
from langchain_ensemble.fusion.tries import Trie

__all__ = [
    "Alignment",
    "FusedDistribution",
    "Fuser",
    "Fusion",
    "FusionContext",
    "MemberDistribution",
    "MemberKeys",
    "Needs",
    "Paths",
    "TokenSpace",
    "Told",
    "Trie",
    "at_home",
    "bounded_distribution",
    "ceiling",
    "member_distribution",
]


@dataclass(frozen=True)
class MemberDistribution:
    """One member's next-token distribution over its keys, float32, natural logarithms.

    Dense: ``ids`` is None and column ``j`` of ``logprobs`` is id ``j``; ids that are not their
    key's representative hold -inf. Sparse: column ``j`` of row ``n`` is id ``ids[n, j]`` (padding:
    id -1 with -inf) and ``rest`` is the log-mass of all keys not listed.
    In both forms the keys, the rest and END sum to one.

    Attributes:
        space: The member's own ids.
        logprobs: [N, V_i], or [N, K] when sparse.
        end: [N] log-probability of END.
        ids: [N, K] or None.
        rest: [N] or None.
        boundary: [N] probability that the member ends a token here (SEMANTICS: open boundaries).
        abstain: [N] bool, rows in which the member has no say.
        paths: Where the member's tokens are in the answer, for fusions that need it.
    """

    space: TokenSpace
    logprobs: Tensor
    end: Tensor
    ids: Tensor | None = None
    rest: Tensor | None = None
    boundary: Tensor | None = None
    abstain: Tensor | None = None
    paths: Paths | None = None

    @property
    def sparse(self) -> bool:
        """Whether only some ids are listed."""
        return self.ids is not None

    def to_sparse(self, k: int) -> MemberDistribution:
        """Keep the ``k`` most probable ids and pool what is left in ``rest``."""
        if self.ids is not None:
            return self
        top, ids = self.logprobs.topk(min(k, self.logprobs.shape[-1]), dim=-1)  # [N, K]
        rest = self.logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1)
        ids = torch.where(top == -torch.inf, -1, ids)
        return replace(self, logprobs=top, ids=ids, rest=rest)

    def to_dense(self, keys: MemberKeys) -> MemberDistribution:
        """Lay the rest evenly over the keys that are not listed.

        Args:
            keys: The member's keys.

        Returns:
            The dense form; itself where it is dense already.
        """
        if self.ids is None:
            return self
        columns = torch.where(self.ids >= 0, self.ids, keys.width)  # padding falls off the edge
        dense = torch.where(keys.own, self._rest_level(keys)[:, None], -torch.inf)
        dense = torch.nn.functional.pad(dense, (0, 1)).scatter(-1, columns, self.logprobs)
        return replace(self, logprobs=dense[:, : keys.width], ids=None, rest=None)

    def logprobs_at(self, ids: Tensor, keys: MemberKeys) -> Tensor:
        """Log-probabilities of a few ids, the same as ``to_dense(keys)`` holds.

        Args:
            ids: [N, S] representatives of this member; -1 gives -inf.
            keys: The member's keys.

        Returns:
            [N, S].
        """
        wanted = ids >= 0
        if self.ids is None:
            got = self.logprobs.gather(-1, ids.clamp_min(0))
        else:
            hit = self.ids[:, None, :] == ids[:, :, None]  # [N, S, K]
            listed = torch.where(hit, self.logprobs[:, None, :], -torch.inf).amax(-1)
            got = torch.where(hit.any(-1), listed, self._rest_level(keys)[:, None])
        return torch.where(wanted, got, -torch.inf)

    def _rest_level(self, keys: MemberKeys) -> Tensor:
        """Log-probability of each key that is not listed, [N]."""
        assert self.ids is not None
        left = keys.own.sum() - (self.ids >= 0).sum(-1)  # [N]
        if self.rest is None:
            return self.logprobs.new_full((len(self.logprobs),), -torch.inf)
        return torch.where(left > 0, self.rest - left.clamp_min(1).log(), -torch.inf)


@dataclass(frozen=True)
class FusedDistribution:
    """What the members say together, over union keys and END, float32 log-probabilities.

    Attributes:
        space: The union space.
        logprobs: [N, S]; with END they sum to one.
        end: [N] log-probability of END.
        keys: [N, S] ascending union keys of the columns (padding: -1 with -inf, at the end of the
            row), or None when column ``j`` is key ``j``.
    """

    space: TokenSpace
    logprobs: Tensor
    end: Tensor
    keys: Tensor | None = None

    def logprob_of(self, targets: Tensor) -> Tensor:
        """Log-probability of one union key a row.

        Args:
            targets: [N] union keys, int64.

        Returns:
            [N]; -inf where the key is not among the columns.
        """
        if self.keys is None:
            inside = targets < self.logprobs.shape[-1]
            got = self.logprobs.gather(-1, targets.clamp_max(self.logprobs.shape[-1] - 1)[:, None])
            return torch.where(inside, got[:, 0], -torch.inf)
        hit = self.keys == targets[:, None]  # [N, S]
        return torch.where(hit, self.logprobs, -torch.inf).amax(-1)


@dataclass(frozen=True)
class Needs:
    """What a fusion asks of every member; a mismatch raises when the ensemble is built.

    Attributes:
        logprobs: ``"dense"`` or ``"top-k"`` (a member that gives only its best ids will do).
        embeddings: Whether input embeddings are read.
        min_common: How many common tokens the members must share.
        paths: Whether members, main too, are heard byte by byte along the paths of their own ids.
    """

    logprobs: Literal["dense", "top-k"] = "top-k"
    embeddings: bool = False
    min_common: int = 0
    paths: bool = False


def _no_memory(_: Mapping[str, Any], build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    return build()


@dataclass(frozen=True)
class FusionContext:
    """What a fusion may use while it prepares itself for one ensemble.

    Attributes:
        alignment: The members' keys.
        embeddings: ``embeddings(i)`` gives member ``i``'s input embeddings, [rows, D].
        embedding_hashes: ``embedding_hashes(i)`` identifies them by content.
        device: Where fusion runs.
        devices: Where each member's distribution is if the fuser says ``apart``; None: ``device``.
        remember: ``remember(key, build)``: ``build()``'s tensors, built once for a JSON-able key.
        on_progress: Called with (stage, done, total) in long loops.
        tries: Each member's keys as a tree of bytes, where the fusion needs paths.
        union_trie: The tree of those union keys that main can hold where a character is complete.
    """

    alignment: Alignment
    embeddings: Callable[[int], Tensor]
    embedding_hashes: Callable[[int], str]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    remember: Callable[[Mapping[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]] = (
        _no_memory
    )
    on_progress: Callable[[str, int, int], None] | None = None
    devices: Sequence[torch.device] | None = None
    tries: Sequence[Trie] | None = None
    union_trie: Trie | None = None

    def device_of(self, i: int) -> torch.device:
        """Where member ``i``'s distribution is."""
        return self.device if self.devices is None else self.devices[i]


class Fuser(Protocol):
    """A fusion made ready for one ensemble: index tensors are built, nothing is text.

    Three things are optional. ``best(distributions, weights)`` promises only the best entry: its
    first maximum over keys and END is the call's (for greedy decoding without log-probabilities).
    ``apart = True``: it takes each member's distribution on that member's device; the weights are
    always on main's. ``fixed = True``: a call (``best`` and ``telling`` too) reads nothing back and
    its shapes follow from those of its arguments: it may be compiled, or captured.

    Where the fusion needs ``paths``, ``over_bytes(logprobs [M, N, 257], weights [N, M])`` gives the
    members' [N, 257] together: 256 bytes and END. ``score`` then walks a text's bytes.
    """

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position.

        Args:
            distributions: One a member, main first, N rows each; None: an auxiliary that was not
                run, whose weights are 0.
            weights: [N, M] float32, rows sum to 1; a member with weight 0 has no say in that row
                (its distribution may be anything finite or abstaining).

        Returns:
            The fused distribution over union keys and END.
        """

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite wherever main can say the key.

        Args:
            distributions: As in a call.
            weights: As in a call.
            targets: [N] union keys.

        Returns:
            [N] float32, nats.
        """


@runtime_checkable
class Fusion(Protocol):
    """A fusion's settings: immutable, JSON-able, named. A user's own object has the same shape."""

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What every member must give."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""

    def prepare(self, context: FusionContext) -> Fuser:
        """Build what is expensive, once."""


def member_distribution(
    logits: Tensor, keys: MemberKeys, mask: Tensor | None = None
) -> MemberDistribution:
    """Turn one member's logits into a distribution over its keys and END.

    Control ids and padded columns are masked, then softmax; ids with equal bytes are added onto
    their representative; end ids are pooled. A row with no mass left abstains.

    Args:
        logits: [N, V_i] float32.
        keys: The member's keys.
        mask: [N, V_i] or [V_i] bool, True where an id is allowed; None allows every key and END.

    Returns:
        The dense distribution.
    """
    return bounded_distribution(logits, keys, ceiling(keys, mask))


def ceiling(keys: MemberKeys, mask: Tensor | None = None) -> Tensor:
    """What an id's logit may be at most: everything where it may come, nothing where not.

    Args:
        keys: The member's keys.
        mask: [..., V_i] bool, True where an id is allowed; None allows every key and END.

    Returns:
        [..., V_i] float32, inf or -inf.
    """
    allowed = keys.speaks if mask is None else keys.speaks & mask
    highest = torch.full(allowed.shape, torch.inf, device=allowed.device)
    return highest.masked_fill_(~allowed, -torch.inf)


def bounded_distribution(
    logits: Tensor, keys: MemberKeys, highest: Tensor, *, speaks: bool | Tensor = False
) -> MemberDistribution:
    """:func:`member_distribution` with a mask that was turned into a :func:`ceiling` before.

    Args:
        logits: [N, V_i] float32.
        keys: The member's keys.
        highest: [N, V_i] or [V_i] float32, inf where an id may come, else -inf.
        speaks: Rows that the mask leaves something to say (all, none, [N] bool): none abstains.

    Returns:
        The dense distribution; where a row ``speaks`` and yet has no finite logit, NaN.
    """
    masked = torch.minimum(logits.float(), highest)
    logprobs = torch.log_softmax(masked, -1)
    abstain: Tensor | None = None
    if speaks is not True:  # a row of -inf becomes NaN: back to -inf, unless it holds NaN (fmax)
        top = masked.amax(-1)
        floor, abstain = top - torch.inf, top == -torch.inf
        if speaks is not False:
            floor, abstain = floor.masked_fill(speaks, torch.nan), abstain & ~speaks
        logprobs = torch.fmax(logprobs, floor[:, None])
    ends = logprobs.index_select(-1, keys.end_ids)
    end = ends[:, 0] if len(keys.end_ids) == 1 else ends.logsumexp(-1)
    logprobs.index_fill_(-1, keys.end_ids, -torch.inf)
    _merge_spare(logprobs, keys)
    return MemberDistribution(keys.space, logprobs, end, abstain=abstain)


def _merge_spare(logprobs: Tensor, keys: MemberKeys) -> None:
    """Add ids with equal bytes onto their representative, in log space and in place."""
    if not len(keys.merged_ids):
        return
    group, source = keys.merged_group, logprobs
    if keys.merged_beyond:
        source = torch.nn.functional.pad(logprobs, (0, 1), value=-torch.inf)
    block = source.index_select(-1, group.flatten()).view(len(logprobs), *group.shape)
    pairs = group.shape[-1] == 2
    total = torch.logaddexp(block[..., 0], block[..., 1]) if pairs else block.logsumexp(-1)
    logprobs.index_fill_(-1, keys.merged_ids, -torch.inf)
    logprobs.index_copy_(-1, keys.merged_into, total)
