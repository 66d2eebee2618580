"""One member's ragged KV cache for some rows of one request, run by an unmodified model.

Prefill and decode are the same act: append ids to rows. Long blocks run in chunks, so that neither
the mask nor the logits of a long prompt are ever whole in memory. Lengths change only after a
forward has come back: an error leaves the session as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.forward import Engine, run
from langchain_ensemble.members.kv_cache import RaggedCache

CHUNK = 512
"""Columns of one forward at most."""


@dataclass(frozen=True)
class Step:
    """A forward that was started: logits [B, keep, V_i] in the model's dtype."""

    owner: object
    logits: Tensor


class SessionBase:
    """What every session shares: the split in submit and collect, marks, prompts."""

    engine: Engine
    lengths: list[int]

    def prefill(self, prompts: Sequence[MemberPrompt]) -> Tensor:
        """Read the prompts into empty rows.

        Args:
            prompts: One a row, each with at least one id.

        Returns:
            Logits after the last id of each row, float32 [B, V_i].

        Raises:
            ConfigError: A prompt has no ids or does not fit the context.
        """
        for row, prompt in enumerate(prompts):
            if not prompt.ids:
                raise ConfigError(f"member {self.engine.name!r}: prompt {row} has no ids")
            if prompt.encoder_ids is not None:
                raise MemberError(f"member {self.engine.name!r} has no encoder; encoder_ids given")
        self._open(len(prompts))
        return self.step([p.ids for p in prompts], keep=1)[:, -1]

    def submit(self, ids: Sequence[Sequence[int]], keep: int | None = 1) -> Step:
        """Start one forward; see :class:`~langchain_ensemble.members.base.MemberSession`."""
        if len(ids) != len(self.lengths):
            raise ConfigError(
                f"member {self.engine.name!r} has {len(self.lengths)} rows; "
                f"ids for {len(ids)} were given"
            )
        counts = [len(row) for row in ids]
        widest = max(counts, default=0)
        wanted = widest if keep is None else keep
        self.engine.check_room(self.lengths, counts)
        if widest == 0:
            shape = (len(ids), wanted, self.engine.width)
            return Step(self, torch.zeros(shape, device=self.engine.device))
        what = f"a step of {len(ids)} rows x {widest} ids after {max(self.lengths)} cached"
        with self.engine.guard(what):
            return Step(self, self._run(ids, counts, wanted))

    def collect(self, pending: Step) -> Tensor:
        """Logits of a submitted step, float32 [B, keep, V_i]."""
        if pending.owner is not self:
            raise MemberError(f"member {self.engine.name!r}: collect() got another session's step")
        with self.engine.guard("float32 logits"):
            return pending.logits.float()

    def step(self, ids: Sequence[Sequence[int]], keep: int | None = 1) -> Tensor:
        """``collect(submit(ids, keep))``."""
        return self.collect(self.submit(ids, keep))

    def mark(self) -> tuple[int, ...]:
        """Remember the lengths."""
        return tuple(self.lengths)

    def rollback(self, mark: Sequence[int]) -> None:
        """Return to a mark of the same rows."""
        self.truncate(mark)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll every row back to a length not above its present one."""
        good = len(lengths) == len(self.lengths) and all(
            0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)
        )
        if not good:
            raise ConfigError(
                f"member {self.engine.name!r} cannot roll back to lengths {list(lengths)}; "
                f"its rows have {self.lengths}"
            )
        self.lengths = list(lengths)

    def _open(self, rows: int) -> None:
        raise MemberError(f"{type(self).__name__} does not say how rows are opened")

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        raise MemberError(f"{type(self).__name__} does not say how ids are run")


class HFSession(SessionBase):
    """Rows in one :class:`RaggedCache`: one padded forward for all of them."""

    def __init__(self, engine: Engine, lengths: Sequence[int] = (), cache: Any = None) -> None:
        """Start empty, or over a cache that was copied."""
        self.engine = engine
        self.lengths = list(lengths)
        self._cache: RaggedCache = RaggedCache() if cache is None else cache

    def _open(self, rows: int) -> None:
        self._cache = RaggedCache()
        self.lengths = [0] * rows

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        """Run a right-aligned block in chunks of at most CHUNK columns."""
        widest = max(counts)
        parts: list[Tensor] = []
        lengths = list(self.lengths)
        first = widest % CHUNK or CHUNK
        for end in range(first, widest + 1, CHUNK):
            begin = max(end - CHUNK, 0)
            chunk = [
                row[max(begin - widest + n, 0) : max(end - widest + n, 0)]
                for row, n in zip(ids, counts, strict=True)
            ]
            wanted = min(max(end - (widest - keep), 0), end - begin)
            logits = self._forward(chunk, lengths, max(wanted, 1))
            parts.append(logits[:, -wanted or CHUNK :])
            lengths = [n + len(c) for n, c in zip(lengths, chunk, strict=True)]
        self.lengths = lengths
        logits = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if keep > widest:
            logits = torch.nn.functional.pad(logits, (0, 0, keep - widest, 0))
        return logits

    def _forward(self, ids: list[Sequence[int]], lengths: list[int], keep: int) -> Tensor:
        """One forward over a chunk; logits of its last ``keep`` columns."""
        return run(self.engine, self._cache, ids, lengths, keep)

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop, reorder or repeat rows."""
        with self.engine.guard(f"a cache of {len(rows)} rows"):
            self._cache = self._cache.take(rows, max(self.lengths, default=0))
        self.lengths = [self.lengths[row] for row in rows]

    def fork(self, rows: Sequence[int]) -> HFSession:
        """A second session over copies of some rows."""
        with self.engine.guard(f"a copy of {len(rows)} rows"):
            cache = self._cache.take(rows, max(self.lengths, default=0))
        return HFSession(self.engine, [self.lengths[row] for row in rows], cache)

    def close(self) -> None:
        """Free the cache."""
        self._cache = RaggedCache()
        self.lengths = []
