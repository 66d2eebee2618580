"""DeePEn: fuse in a space that members with different tokenizers share.

Huang et al., NeurIPS 2024, arXiv:2404.12715. Each member's tokens are told by their similarity to
the *anchors*, tokens that all members have (``relative.py``); ``t = sum_i w_i p_i R_i`` is the
members' mean there; a short search moves main's logits towards ``t`` (``search.py``).

Where we depart from the authors' code and why:

* Anchors are equal *bytes* in main's id order; theirs are equal strings in a Python set's order.
* END is outside the search: ``e = sum_i w_i e_i``; ``t`` is taken over keys alone and normalised;
  the answer is ``((1 - e) softmax(z_T), e)``. As an axis of the relative space END could move by no
  more than any logit, so others could never end a main that does not want to. Theirs hands the step
  to main wherever main's best id is its end token.
* Where every member agrees with main (``max |t / r_main - 1| <= 1e-5``), main's distribution is
  returned as it is; theirs still applies the weight decay.
* A rate per main member; theirs is one number. Weights sum to 1 within rounding, per row.
* Where the vocabulary is too large for a dense search, main's *support* (the smallest set of tokens
  with 0.999 of the mass, at most ``support_cap``) is searched and the rest is one tail token; its
  row is the mean row, with the exact rows of the next 64 tokens mixed in. So a row of the search
  costs ``support x A``, not ``V x A``, and nothing of size [V, A] needs to exist.

What the support does to flat rows: where 512 tokens hold less than 0.999, the cap leaves more mass
in the tail; the tail keeps its share (less the decay), so tokens past the cap cannot be promoted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, VocabularyError, unknown_name
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    MemberKeys,
    Needs,
)
from langchain_ensemble.fusion.relative import (
    MEAN_ROWS,
    MULTIPLIER,
    ComputedRows,
    Rows,
    StoredRows,
    evenly,
    mean_row,
    relative_representation,
    to_relative,
)
from langchain_ensemble.fusion.search import (
    certified,
    check_search,
    decay,
    search,
    search_support,
)
from langchain_ensemble.fusion.voices import TINY, dense, finite_score, voices, weighted_log_sum

__all__ = [
    "Deepen",
    "DeepenFuser",
    "certified",
    "relative_representation",
    "search",
    "search_support",
    "to_relative",
]

FORMAT = 1
"""Version of what is stored; an older entry is built anew."""

MIN_COMMON = 100
"""Fewer common tokens than this are refused unless ``anchors`` says so."""

DENSE_CELLS = 1 << 24
"""``V x A`` up to which every member's table is kept and the whole vocabulary is searched."""

TABLE_BYTES = 4 << 30
"""Size up to which a table is kept (on disk, memory-mapped); above it rows are computed."""

CHUNK_CELLS = 1 << 26
"""Relative rows held at a time, in float32 cells (256 MiB); at least one row's support."""

NEXT_TOKENS = 64
"""Tokens after the support whose own rows are read, not the mean row."""

AGREE = 1e-5
"""Members agree with main where no anchor's share differs by more than this, relatively."""

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Deepen:
    """Fusion in the relative space.

    Attributes:
        search_steps: Adam steps, 0..10 (the paper: 5).
        search_lr: Rate of the search (the paper's published run: 0.15), one or one per main's name.
        anchors: ``"all"`` common tokens (the paper), how many of them evenly spaced, or main's ids.
        support_mass: Mass of main's (and each auxiliary's) distribution that is kept exactly.
        support_cap: Tokens of a support at most.
        dense: True: keep tables and search the whole vocabulary; False: support and tail, no
            tables; None: whichever the sizes call for.
        precision: What tables are stored in; computing is float32.
    """

    search_steps: int = 5
    search_lr: float | Mapping[str, float] = 0.15
    anchors: Literal["all"] | int | tuple[int, ...] = "all"
    support_mass: float = 0.999
    support_cap: int = 512
    dense: bool | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    name: ClassVar[str] = "deepen"

    def __post_init__(self) -> None:
        """Check every setting."""
        if isinstance(self.anchors, list):
            object.__setattr__(self, "anchors", tuple(self.anchors))
        listed = (
            self.search_lr.values() if isinstance(self.search_lr, Mapping) else [self.search_lr]
        )
        for rate in listed:
            check_search(self.search_steps, rate)
        _check_anchors(self.anchors)
        if self.precision not in _DTYPES:
            raise ConfigError(unknown_name("precision of fusion='deepen'", self.precision, _DTYPES))
        if not 0.0 < self.support_mass <= 1.0:
            raise ConfigError(
                f"fusion='deepen' has support_mass={self.support_mass!r}; it must be in (0, 1]"
            )
        if self.support_cap < 1:
            raise ConfigError(
                f"fusion='deepen' has support_cap={self.support_cap!r}; it must be at least 1"
            )

    @property
    def needs(self) -> Needs:
        """Input embeddings, and enough common tokens to be anchors."""
        if self.anchors == "all":
            return Needs(embeddings=True, min_common=MIN_COMMON)
        count = self.anchors if isinstance(self.anchors, int) else len(self.anchors)
        return Needs(embeddings=True, min_common=count)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        rate = dict(self.search_lr) if isinstance(self.search_lr, Mapping) else self.search_lr
        return {
            "search_steps": self.search_steps,
            "search_lr": rate,
            "anchors": list(self.anchors) if isinstance(self.anchors, tuple) else self.anchors,
            "support_mass": self.support_mass,
            "support_cap": self.support_cap,
            "dense": self.dense,
            "precision": self.precision,
        }

    def rate(self, main: str) -> float:
        """Search rate for a main member.

        Raises:
            ConfigError: ``search_lr`` is a mapping that does not name it.
        """
        if not isinstance(self.search_lr, Mapping):
            return self.search_lr
        if main not in self.search_lr:
            raise ConfigError(unknown_name("main member in search_lr", main, self.search_lr))
        return self.search_lr[main]

    def prepare(self, context: FusionContext) -> DeepenFuser:
        """Build or look up the relative representations (minutes for large vocabularies)."""
        return DeepenFuser(self, context)


def _check_anchors(anchors: object) -> None:
    good = anchors == "all"
    if isinstance(anchors, int) and not isinstance(anchors, bool):
        good = anchors >= 1
    if isinstance(anchors, tuple):
        good = bool(anchors) and all(isinstance(a, int) for a in anchors)
    if not good:
        raise ConfigError(
            f"fusion='deepen' has anchors={anchors!r}; give 'all', a number of anchors, or a list "
            "of main's token ids"
        )


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
            names = " and ".join(repr(keys.name) for keys in alignment.members)
            raise VocabularyError(
                f"members {names} share {len(common)} common tokens; fusion='deepen' was asked for "
                f"anchors={anchors}. Ask for fewer, or use fusion='unite'."
            )
        return evenly(common, anchors)
    return common


class DeepenFuser:
    """:class:`Deepen` made ready for one ensemble."""

    def __init__(self, fusion: Deepen, context: FusionContext) -> None:
        """Make every member's rows; tables come from the disk cache."""
        self._fusion = fusion
        self._alignment = context.alignment
        self._rate = fusion.rate(context.alignment.main.name)
        anchors = select_anchors(fusion.anchors, context.alignment)
        if not len(anchors):
            raise VocabularyError(
                "the members share no common token; fusion='deepen' needs anchors"
            )
        self.anchors = anchors
        self.dense = fusion.dense
        if self.dense is None:
            widest = max(keys.width for keys in context.alignment.members)
            self.dense = widest * len(anchors) <= DENSE_CELLS
        self._rows = [
            _member_rows(fusion, context, i, keys.from_union[anchors], self.dense)
            for i, keys in enumerate(context.alignment.members)
        ]

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        """Fuse one row per position; see :class:`~langchain_ensemble.fusion.base.Fuser`."""
        run = dense(distributions, self._alignment)
        share = voices(run, weights)
        spoken = [
            torch.where(share[:, i, None] > 0, one.logprobs, -torch.inf)
            for i, one in enumerate(run)
        ]
        ends = [torch.where(share[:, i] > 0, one.end, -torch.inf) for i, one in enumerate(run)]
        logits = self._start(run[0])
        moved = self._moved(logits, spoken, share)
        keys = weighted_log_sum([part.logsumexp(-1) for part in spoken], share)  # [N] log (1 - e)
        end = weighted_log_sum(ends, share)
        sayable = logits.amax(-1) > -torch.inf  # else nothing is left but END
        keys = torch.where(sayable, keys, -torch.inf)
        total = torch.logaddexp(keys, end)
        total = total.masked_fill(total == -torch.inf, 0.0)
        level = moved.logsumexp(-1).masked_fill(~sayable, 0.0)
        fused = moved + (keys - total - level)[:, None]
        return FusedDistribution(
            self._alignment.space, fused.masked_fill(moved == -torch.inf, -torch.inf), end - total
        )

    def score(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of one union key a row, finite where main can say it."""
        got = self(distributions, weights).logprob_of(targets)
        return finite_score(got, distributions[0], targets, self._alignment)

    def _start(self, main: MemberDistribution) -> Tensor:
        """Where the search begins: main's logits, or all of main's keys alike where it abstains."""
        if main.abstain is None:
            return main.logprobs
        flat = torch.where(self._alignment.main.own, 0.0, -torch.inf)
        return torch.where(main.abstain[:, None], flat, main.logprobs)

    def _moved(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """Main's logits after the search, [N, V], chunk by chunk."""
        if self.dense:
            return self._dense(logits, spoken, share)
        cells = (self._fusion.support_cap + NEXT_TOKENS) * len(self.anchors)
        size = max(1, CHUNK_CELLS // cells)
        parts = [
            self._supported(
                logits[at : at + size], [s[at : at + size] for s in spoken], share[at : at + size]
            )
            for at in range(0, len(logits), size)
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _dense(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """The oracle: whole tables, whole vocabulary."""
        tables = [rows.table for rows in self._rows if isinstance(rows, StoredRows)]
        probs = torch.softmax(_sayable(logits), -1)
        here = to_relative(probs[:, : len(tables[0])], tables[0])
        target = torch.zeros_like(here)
        for i in _heard(share):
            part, table = spoken[i], tables[i]
            target = target + share[:, i, None] * to_relative(part[:, : len(table)].exp(), table)
        target = _normalised(target, here)
        agree = _agree(target, here)
        if bool(agree.all()):
            return logits
        width = len(tables[0])
        moved = search(
            _sayable(logits)[:, :width], tables[0], target, self._fusion.search_steps, self._rate
        )
        moved = torch.nn.functional.pad(moved, (0, logits.shape[-1] - width), value=-torch.inf)
        moved = torch.where(logits == -torch.inf, -torch.inf, moved)
        return torch.where(agree[:, None], logits, moved)

    def _supported(self, logits: Tensor, spoken: Sequence[Tensor], share: Tensor) -> Tensor:
        """Support and tail."""
        start = _sayable(logits)
        main = self._describe(0, start)
        here = main.relative / main.relative.sum(-1, keepdim=True).clamp_min(TINY)
        target = torch.zeros_like(here)
        for i in _heard(share):
            described = main if i == 0 else self._describe(i, spoken[i])
            target = target + share[:, i, None] * described.relative
        target = _normalised(target, here)
        agree = _agree(target, here)
        if bool(agree.all()):
            return logits
        steps, rate = self._fusion.search_steps, self._rate
        rest = start.scatter(-1, main.ids, main.outside(start))
        found = search_support(main.logprobs, main.rows, rest, main.tail_row, target, steps, rate)
        left = decay(steps, rate)
        moved = left * start
        moved = moved.scatter(-1, main.ids, torch.where(main.kept, found, left * main.all_logprobs))
        moved = torch.where(logits == -torch.inf, -torch.inf, moved)
        return torch.where(agree[:, None], logits, moved)

    def _describe(self, i: int, logprobs: Tensor) -> _Described:
        """One member's distribution in the relative space, from its best rows and the mean row."""
        fusion, rows = self._fusion, self._rows[i]
        k = min(fusion.support_cap + NEXT_TOKENS, logprobs.shape[-1])
        top, ids = logprobs.topk(k, dim=-1)  # [N, k]
        probs = top.exp()
        total = logprobs.exp().sum(-1, keepdim=True)
        before = probs.cumsum(-1) - probs
        slot = torch.arange(k, device=top.device)
        kept = (before < fusion.support_mass * total) & (slot < fusion.support_cap)
        kept &= top > -torch.inf
        kept[:, 0] = True
        count = kept.sum(-1, keepdim=True)
        read = slot < count + NEXT_TOKENS
        size = int(count.max())
        wide = min(k, size + NEXT_TOKENS)
        table = rows(ids[:, :wide])  # [N, wide, A]
        near = torch.where((read & ~kept)[:, :wide], probs[:, :wide], 0.0)
        unread = (total - torch.where(read, probs, 0.0).sum(-1, keepdim=True)).clamp_min(0.0)
        tail = torch.bmm(near[:, None], table)[:, 0] + unread * rows.mean
        inside = torch.where(kept[:, :size], probs[:, :size], 0.0)
        relative = torch.bmm(inside[:, None], table[:, :size])[:, 0] + tail
        tail_mass = tail.sum(-1, keepdim=True)
        tail_row = torch.where(tail_mass > 0, tail / tail_mass.clamp_min(TINY), rows.mean)
        return _Described(
            ids[:, :size], top[:, :size], kept[:, :size], table[:, :size], tail_row, relative
        )


@dataclass(frozen=True)
class _Described:
    """One member's rows in the relative space.

    Attributes:
        ids: [N, S] best ids, descending.
        all_logprobs: [N, S].
        kept: [N, S] bool, slots inside each row's own support.
        rows: [N, S, A].
        tail_row: [N, A], rows sum to 1.
        relative: [N, A], sums to the row's mass.
    """

    ids: Tensor
    all_logprobs: Tensor
    kept: Tensor
    rows: Tensor
    tail_row: Tensor
    relative: Tensor

    @property
    def logprobs(self) -> Tensor:
        """[N, S] with -inf in slots outside the row's support."""
        return self.all_logprobs.masked_fill(~self.kept, -torch.inf)

    def outside(self, logits: Tensor) -> Tensor:
        """[N, S] what the support's ids hold in the rest: -inf inside it."""
        return logits.gather(-1, self.ids).masked_fill(self.kept, -torch.inf)


def _heard(share: Tensor) -> list[int]:
    """Members with a say in at least one row (of the rest nothing is computed)."""
    return [i for i, heard in enumerate((share > 0).any(0).tolist()) if heard]


def _sayable(logits: Tensor) -> Tensor:
    """Rows without any key become flat, so that no softmax sees only -inf; callers mask them."""
    empty = logits.amax(-1, keepdim=True) == -torch.inf
    return torch.where(empty, 0.0, logits)


def _normalised(target: Tensor, here: Tensor) -> Tensor:
    """Rows of ``target`` [N, A] scaled to sum 1; where nobody says a key, main's own place."""
    mass = target.sum(-1, keepdim=True)
    return torch.where(mass > TINY, target / mass.clamp_min(TINY), here)


def _agree(target: Tensor, here: Tensor) -> Tensor:
    """Rows [N] in which no anchor's share differs from main's by more than :data:`AGREE`."""
    return ((target - here).abs() <= AGREE * here).all(-1)


def _member_rows(
    fusion: Deepen, context: FusionContext, i: int, anchor_ids: Tensor, whole: bool
) -> Rows:
    """Rows of one member: a stored table, or rows computed when asked for."""
    keys = context.alignment.members[i]
    dtype = _DTYPES[fusion.precision]
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
    if whole or (fusion.dense is None and size <= TABLE_BYTES):

        def table() -> dict[str, Tensor]:
            made = relative_representation(embeddings, anchor_ids, dtype=dtype, on_progress=report)
            return {"relative": made, "mean": made[token_ids].float().mean(0)}

        stored = context.remember(
            {**key, "kind": "relative", "precision": fusion.precision, "tokens": _hash(token_ids)},
            table,
        )
        relative = stored["relative"].to(context.device)
        return StoredRows(relative, stored["mean"], context.device)

    def mean() -> dict[str, Tensor]:
        return {"mean": mean_row(embeddings, anchor_ids, token_ids, report)}

    stored = context.remember(
        {**key, "kind": "relative-mean", "sample": MEAN_ROWS, "tokens": _hash(token_ids)}, mean
    )
    return ComputedRows(embeddings, anchor_ids, stored["mean"], context.device)


def _check_rows(embeddings: Tensor, anchor_ids: Tensor, keys: MemberKeys) -> None:
    if int(anchor_ids.max()) >= len(embeddings):
        raise VocabularyError(
            f"member {keys.name!r} has {len(embeddings)} embedding rows but anchor id "
            f"{int(anchor_ids.max())}; its tokenizer names ids that the model does not have. Use "
            "the model's own tokenizer, or pass anchors= without them."
        )


def _hash(ids: Tensor) -> str:
    return hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()
