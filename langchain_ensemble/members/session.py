"""One member's ragged KV cache for some rows of one request, run by an unmodified model.

Prefill and decode are the same act: append ids to rows. Long blocks run in chunks, so that neither
the mask nor the logits of a long prompt are ever whole in memory. Lengths change only after a
forward has come back: an error leaves the session as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError, MemberError
from langchain_ensemble.members.adapters import BASE
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.kv_cache import GRAIN
from langchain_ensemble.members.pool import Home, Pool, Step

CHUNK = 512
"""Columns of one forward at most."""

TOGETHER = 16
"""Columns of a block that may wait for other sessions; longer ones run at once."""


class SessionBase:
    """What every session shares: the split in submit and collect, marks, prompts."""

    engine: Engine
    lengths: list[int]
    chunk: int | None = None

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
        return self._start(ids, counts, wanted)

    def collect(self, pending: Step) -> Tensor:
        """Logits of a submitted step, float32 [B, keep, V_i].

        Raises:
            MemberError: The step is another session's, or its forward failed.
        """
        if pending.owner is not self:
            raise MemberError(f"member {self.engine.name!r}: collect() got another session's step")
        logits = self._finish(pending)
        with self.engine.guard("float32 logits"):
            return logits.float()

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

    def _start(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Step:
        """Run a block at once."""
        what = f"a step of {len(ids)} rows x {max(counts)} ids after {max(self.lengths)} cached"
        with self.engine.guard(what):
            return Step(self, self._run(ids, counts, keep))

    def _finish(self, step: Step) -> Tensor:
        """Logits of a step of this session."""
        if step.logits is None:
            raise MemberError(f"member {self.engine.name!r}: collect() got a step that did not run")
        return step.logits

    def _open(self, rows: int) -> None:
        raise MemberError(f"{type(self).__name__} does not say how rows are opened")

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        raise MemberError(f"{type(self).__name__} does not say how ids are run")


class HFSession(SessionBase):
    """Rows of a :class:`RaggedCache`, which other sessions of the pool may share.

    A step of a few ids waits until some session of the pool collects; then all that wait run as
    rows of one forward. ``lengths`` count the new ids from ``submit`` on; where the forward fails
    they are those from before again, and ``collect`` raises. Whatever else is done to a session
    whose step waits runs it first (its logits can still be collected), except ``prefill`` and
    ``close``, which drop it.

    Attributes:
        pool: What all sessions over the module share.
        adapter: Adapter that the rows run with.
        home: The cache that holds the rows.
        rows: Their places in it.
    """

    chunk: int | None = CHUNK

    def __init__(self, engine: Engine, pool: Pool | None = None, adapter: str = BASE) -> None:
        """Start empty; without a pool nothing is shared."""
        self.engine = engine
        self.pool = Pool() if pool is None else pool
        self.adapter = adapter
        self.lengths = []
        self.home, self.rows = Home(), list[int]()
        self._last: Step | None = None

    def cached(self) -> Sequence[int]:
        """Tokens in the cache, one a row, without those that wait."""
        waits = self._last is not None and self._last.waits
        return self._last.before if waits and self._last is not None else self.lengths

    def _open(self, rows: int) -> None:
        self._leave()
        self.home.house(self, range(rows))
        self.lengths = [0] * rows

    def _start(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Step:
        """Let a short block wait; run a long one, or the first of a row, in a cache of its own."""
        self._settle()
        if max(counts) > TOGETHER or not all(self.lengths):
            return super()._start(ids, counts, keep)
        step = Step(self, ids=ids, before=self.lengths, keep=keep)
        with self.pool.lock:  # others may move the rows meanwhile
            self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
            self._last = step
            self.pool.add(step)
        return step

    def _finish(self, step: Step) -> Tensor:
        if step.waits:
            self.pool.flush()
        if step is self._last:
            self._last = None
        if step.error is not None:
            longest = max(step.before, default=0)
            widest = max(map(len, step.ids), default=0)
            with self.engine.guard(
                f"a step of {len(step.ids)} rows x {widest} ids after {longest} cached"
            ):
                raise step.error
        return super()._finish(step)

    def _settle(self) -> None:
        """Run the step that waits, if any; raise what its forward raised."""
        if self._last is not None:
            self._finish(self._last)

    def _run(self, ids: Sequence[Sequence[int]], counts: list[int], keep: int) -> Tensor:
        """Run a right-aligned block in chunks of at most CHUNK columns."""
        with self.pool.lock:
            if not self.home.holds_only(self):
                self.home.part([self])
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
        adapters = [self.adapter] * len(ids)
        return self.pool.run(self.engine, self.home, ids, lengths, keep, adapters)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll every row back to a length not above its present one."""
        self._settle()
        super().truncate(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep, drop, reorder or repeat rows; of a shared cache only repeats are copied."""
        self._settle()
        lengths = [self.lengths[row] for row in rows]
        with self.pool.lock:
            if self.home.holds_only(self) or len(set(rows)) < len(rows):
                self._copy(rows).house(self, range(len(rows)))
            else:
                self.rows = [self.rows[row] for row in rows]
            self.lengths = lengths
            self.pool.tidy(self.home)

    def fork(self, rows: Sequence[int], upto: int | None = None) -> HFSession:
        """A second session over copies of some rows, or of their beginnings."""
        self._settle()
        fork = HFSession(self.engine, self.pool, self.adapter)
        lengths = [self.lengths[row] for row in rows]
        if upto is not None:
            lengths = [min(length, upto) for length in lengths]
        with self.pool.lock:
            self._copy(rows, max(lengths, default=0)).house(fork, range(len(rows)))
        fork.lengths = lengths
        return fork

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values, spare room and other sessions' rows included."""
        return sum(
            part.nbytes
            for layer in self.home.cache.layers
            if layer.is_initialized
            for part in (layer.keys, layer.values)
        )

    def compact(self, row: int, length: int) -> HFSession:
        """The beginning of one row in a cache of its own with little room to spare.

        Args:
            row: The row.
            length: How much of it.

        Returns:
            This session where nothing has to be copied, else a copy; this one is closed then.
        """
        self._settle()
        cache = self.home.cache
        # a static buffer goes to the next session, with the graphs that were captured over it
        alone = self.engine.static is None and all(
            len(layer.keys) == 1 for layer in cache.layers if layer.is_initialized
        )
        if alone and self.home.holds_only(self) and cache.capacity <= 2 * max(length, GRAIN):
            self.truncate([length])
            return self
        copy = self.fork([row], length)
        self.close()
        return copy

    def _copy(self, rows: Sequence[int], slots: int | None = None) -> Home:
        """A home over copies of some rows."""
        slots = max(self.lengths, default=0) if slots is None else slots
        with self.engine.guard(f"a cache of {len(rows)} rows"):
            places = [self.rows[row] for row in rows]
            return Home(self.home.cache.take(places, slots))

    def close(self) -> None:
        """Free the cache, or the rows of a shared one; a step that waits is dropped."""
        self._leave()
        self.lengths = []

    def _leave(self) -> None:
        """Give the rows up and drop a step that waits."""
        step, self._last = self._last, None
        with self.pool.lock:
            if step is not None and step.waits:
                self.pool.drop(step)
                step.error = MemberError(
                    f"member {self.engine.name!r}: its session was closed before the step ran"
                )
            home = self.home
            Home().house(self, [])
            self.pool.tidy(home)
