"""Sessions over the same weights that step together run as rows of one forward.

A session that submits a few ids only says so; the first ``collect`` of any session of the pool runs
all that wait. Who waits alone runs in its own cache, where nothing is copied. Who waits with others
shares a cache with them from then on: the rows of the smaller cache are copied once into the
larger, whose row capacity doubles when it is full. Rows that others have left are holes, filled by
whoever joins next and dropped once they are more than a quarter.

Rows that have nothing to run ride along as rows without new ids. Where more than half of a cache's
rows would, those that run are taken out into a cache of their own; where the same cache has carried
idle rows :data:`PATIENCE` times in a row, the idle ones are. Caches are not joined where more than
half of the slots would be padding, :data:`SMALL` slots excepted: one long row does not make all
others as long.

Every forward, join and move holds the pool's lock: ensembles in different threads may share
weights. A session itself belongs to one thread at a time (the decode engine's lock sees to that).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from langchain_ensemble.errors import EnsembleWarning, MemberError
from langchain_ensemble.members.adapters import BASE, Adapters
from langchain_ensemble.members.forward import Engine, run
from langchain_ensemble.members.kv_cache import RaggedCache

if TYPE_CHECKING:
    from langchain_ensemble.members.session import HFSession

T = TypeVar("T")

PATIENCE = 8
"""Forwards in a row in which a shared cache carries idle rows before they are moved out."""

SMALL = 8192
"""Slots that a shared cache may have whatever part of them is padding."""


@dataclass(eq=False)
class Step:
    """A forward that was submitted.

    Attributes:
        owner: The session that submitted it.
        logits: [B, keep, V_i] in the model's dtype; None while it waits, or when it failed.
        ids: New ids of each row.
        before: The session's lengths before them.
        keep: How many last columns are wanted.
        error: Why there are no logits.
    """

    owner: object
    logits: Tensor | None = None
    ids: Sequence[Sequence[int]] = ()
    before: Sequence[int] = ()
    keep: int = 1
    error: Exception | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not run yet."""
        return self.logits is None and self.error is None


class Home:
    """Rows of one ragged cache, and whose they are.

    Attributes:
        cache: Keys and values.
        rows: Rows in use, holes included: the first so many of the cache.
        tenants: Sessions that live here.
        carried: Forwards in a row that carried idle rows.
    """

    def __init__(self, cache: RaggedCache | None = None) -> None:
        """Start without tenants."""
        self.cache = RaggedCache() if cache is None else cache
        self.rows = 0
        self.tenants: WeakSet[HFSession] = WeakSet()
        self.carried = 0

    def house(self, tenant: HFSession, rows: Sequence[int]) -> None:
        """Give rows to a session, which leaves where it lived."""
        tenant.home.tenants.discard(tenant)
        tenant.home, tenant.rows = self, list(rows)
        self.tenants.add(tenant)
        self.rows = max([self.rows, *(row + 1 for row in rows)])

    def listed(self) -> list[HFSession]:
        """Tenants in the order of their rows."""
        return sorted(self.tenants, key=lambda tenant: tenant.rows)

    def holds_only(self, tenant: HFSession) -> bool:
        """Whether all rows are this session's, in order."""
        return len(self.tenants) == 1 and tenant.rows == list(range(self.rows))

    def live(self) -> int:
        """Rows that are no holes."""
        return sum(len(tenant.rows) for tenant in self.tenants)

    def cached(self) -> list[int]:
        """Tokens of every row that is no hole."""
        return [n for tenant in self.tenants for n in tenant.cached()]

    def part(self, tenants: Sequence[HFSession]) -> Home:
        """Move sessions into a cache of their own."""
        rows = [row for tenant in tenants for row in tenant.rows]
        longest = max((n for tenant in tenants for n in tenant.cached()), default=0)
        home = Home(self.cache.take(rows, longest))
        for tenant in tenants:
            home.house(tenant, range(home.rows, home.rows + len(tenant.rows)))
        return home

    def takes(self, other: Home) -> bool:
        """Whether both are run the same way, and a cache for both would not be mostly padding."""
        mine, its = self.listed()[0].engine, other.listed()[0].engine
        if mine.static is not its.static:
            return False
        lengths = [*self.cached(), *other.cached()]
        return len(lengths) * max(lengths) <= max(SMALL, 2 * sum(lengths))

    def adopt(self, other: Home) -> None:
        """Take in all sessions of another cache: holes first, then new rows."""
        taken = {row for tenant in self.tenants for row in tenant.rows}
        moving = other.listed()
        count = other.live()
        free = [row for row in range(self.rows + count) if row not in taken][:count]
        rows = [row for tenant in moving for row in tenant.rows]
        self.cache.put(other.cache, rows, free, max(other.cached()))
        for tenant in moving:
            self.house(tenant, [free.pop(0) for _ in tenant.rows])

    def mode(self) -> AbstractContextManager[None]:
        """Inference mode where the cache was made in it: no other may write there."""
        made = [layer for layer in self.cache.layers if layer.is_initialized]
        if made and made[0].keys.is_inference():
            return torch.inference_mode()
        return nullcontext()


class Pool:
    """What all sessions over one module share: their waiting steps, and the counters.

    Attributes:
        lock: Held by every forward and by whatever moves rows or changes the module.
        adapters: The adapters on the module.
        forwards: Forwards run.
        rows: Rows of all forwards.
        columns: Rows times columns of all forwards.
        copied: Rows copied from one cache to another.
    """

    def __init__(self) -> None:
        """Start with nothing waiting."""
        self.lock = threading.RLock()
        self.adapters = Adapters()
        self.forwards = self.rows = self.columns = self.copied = 0
        self._waiting: list[Step] = []

    def add(self, step: Step) -> None:
        """Let a step wait for the next flush."""
        with self.lock:
            self._waiting.append(step)

    def drop(self, step: Step) -> None:
        """Forget a waiting step."""
        with self.lock:
            if step in self._waiting:
                self._waiting.remove(step)

    def flush(self) -> None:
        """Run all that waits.

        An error stays with the steps of its forward, whose sessions are as they were before; what
        is no error of the forward (an interrupt) leaves the steps waiting.
        """
        with self.lock, torch.no_grad():
            for step in self._waiting:
                try:
                    self._check(_owner(step).engine, [_owner(step).adapter])
                except MemberError as error:
                    _fail(step, error)
            self._waiting = [step for step in self._waiting if step.waits]
            for home in self._arranged():
                steps = [step for step in self._waiting if _owner(step).home is home]
                try:
                    self._forward(home, steps)
                except Exception as error:  # every owner gets it when it collects
                    for step in steps:
                        _fail(step, error)
                self._waiting = [step for step in self._waiting if step.waits]

    def run(
        self,
        engine: Engine,
        home: Home,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        keep: int,
        adapters: Sequence[str],
    ) -> Tensor:
        """One forward over the rows of a home; see :func:`~langchain_ensemble.members.forward.run`.

        Raises:
            MemberError: An adapter is no longer there.
        """
        with self.lock, home.mode():
            self._check(engine, adapters)
            mixed = list(adapters) if set(adapters) != {BASE} else None
            logits = run(engine, home.cache, ids, lengths, keep, mixed)
            self.forwards += 1
            self.rows += len(ids)
            self.columns += len(ids) * max(map(len, ids))
            return logits

    def _check(self, engine: Engine, adapters: Sequence[str]) -> None:
        """Refuse rows of an adapter that is no longer there; PEFT would run the base."""
        if set(adapters) - self.adapters.names - {BASE}:
            raise MemberError(
                f"member {engine.name!r}: its adapter was released; load the member again"
            )

    def _forward(self, home: Home, steps: Sequence[Step]) -> None:
        """Run the waiting steps of one home and give every one its logits."""
        ids: list[Sequence[int]] = [()] * home.rows
        lengths, adapters = [0] * home.rows, [BASE] * home.rows
        for tenant in home.tenants:
            for row, length in zip(tenant.rows, tenant.cached(), strict=True):
                lengths[row] = length
        for step in steps:
            owner = _owner(step)
            for row, new in zip(owner.rows, step.ids, strict=True):
                ids[row], adapters[row] = new, owner.adapter
        keep = min(max(step.keep for step in steps), max(map(len, ids)))
        first = _owner(steps[0])
        if home.holds_only(first):
            logits = first._forward(ids, lengths, keep)
        else:
            logits = self.run(first.engine, home, ids, lengths, keep, adapters)
        for step in steps:
            step.logits = _share(logits, _owner(step).rows, step.keep)

    def _arranged(self) -> list[Home]:
        """Put what waits into few caches; returns those to run."""
        busy: dict[Home, list[HFSession]] = {}
        for step in self._waiting:
            busy.setdefault(_owner(step).home, []).append(_owner(step))
        if len(self._waiting) == 1 and all(h.holds_only(t[0]) for h, t in busy.items()):
            return list(busy)  # alone: the common case costs nothing
        homes = [self._parted(home, tenants) for home, tenants in busy.items()]
        homes.sort(key=lambda home: sum(home.cached()), reverse=True)
        kept: list[Home] = []
        for home in homes:
            target = next((other for other in kept if other.takes(home)), None)
            if target is None or not self._moved(home.live(), target.adopt, home):
                kept.append(home)
        return kept

    def _parted(self, home: Home, busy: list[HFSession]) -> Home:
        """Free the busy rows of a home of too many idle ones."""
        idle = [tenant for tenant in home.listed() if tenant not in busy]
        riding = sum(len(tenant.rows) for tenant in idle)
        home.carried = home.carried + 1 if idle else 0
        leaving: list[HFSession] = []
        if riding > home.live() - riding:
            leaving = busy
        elif home.carried > PATIENCE:
            leaving = idle
        if leaving:
            home.carried = 0
            if self._moved(sum(len(tenant.rows) for tenant in leaving), home.part, leaving):
                self.tidy(home)
        return busy[0].home

    def tidy(self, home: Home) -> None:
        """Drop a home's holes where they are more than a quarter; the lock is held."""
        live = home.live()
        if live and 4 * (home.rows - live) > home.rows:
            self._moved(live, home.part, home.listed())

    def _moved(self, rows: int, move: Callable[[T], object], what: T) -> bool:
        """Copy rows where there is memory for it; otherwise all stays where it is."""
        try:
            with torch.inference_mode():
                move(what)
        except torch.OutOfMemoryError as error:
            warnings.warn(
                f"{rows} rows of cache could not be copied ({error}); they run in a forward of "
                "their own, which is slower. Lower max_concurrent=, n= or max_tokens=",
                EnsembleWarning,
                stacklevel=2,
            )
            return False
        self.copied += rows
        return True


def _owner(step: Step) -> HFSession:
    """The session of a step that waits: only sessions of the pool let steps wait."""
    owner: HFSession = step.owner  # type: ignore[assignment]
    return owner


def _fail(step: Step, error: Exception) -> None:
    """Leave a step's session as it was before."""
    step.error = error
    _owner(step).lengths = list(step.before)


def _share(logits: Tensor, rows: Sequence[int], keep: int) -> Tensor:
    """A session's part of the logits of a forward, [len(rows), keep, V_i]."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        mine = logits[rows[0] : rows[0] + len(rows), -keep:]
    else:
        index = torch.tensor(list(rows), device=logits.device)
        mine = logits[:, -keep:].index_select(0, index)
    missing = keep - mine.shape[1]
    return torch.nn.functional.pad(mine, (0, 0, missing, 0)) if missing > 0 else mine
