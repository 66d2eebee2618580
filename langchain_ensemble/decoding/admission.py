"""Who runs now and who waits: requests in the order in which they came, within limits.

No thread and no forward. A request is refused where it can never run, or where too many wait. The
first that finds no room holds back those behind it, so that a large one is not passed by for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from langchain_ensemble.decoding.served import UNREAD, Served
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.errors import MemoryLimitError, OverloadedError
from langchain_ensemble.params import DEFAULT_MAX_CONCURRENT, DEFAULT_MAX_TOKENS

BETWEEN = 32
"""Rounds that a request keeps its place for while no phase of it runs."""


class Kept(Protocol):
    """Caches that nobody needs, but that may save work."""

    used_bytes: int

    def shrink(self, nbytes: int) -> int:
        """Free at least as many bytes, or all there are."""


@dataclass(frozen=True)
class Limits:
    """How much is done at once.

    Attributes:
        max_concurrent: Answers that are decoded together at most.
        max_queue: Requests that wait at most; None: any number.
        kv_bytes: Bytes of KV caches at most; None: what the devices hold.
    """

    max_concurrent: int = DEFAULT_MAX_CONCURRENT
    max_queue: int | None = None
    kv_bytes: int | None = None


def kv_bytes(task: Task) -> int:
    """Bytes that a request's KV caches take when every answer is as long as it may be.

    Args:
        task: The request. Where neither ``max_tokens`` nor a context bounds an answer, it counts
            as DEFAULT_MAX_TOKENS.

    Returns:
        The estimate, all members together.
    """
    total, limit = 0, task.request.max_tokens
    for prompt in task.prompts:
        for own, voice in zip(prompt, task.voices, strict=True):
            member = voice.member
            read = len(own.ids)
            if limit is not None:
                read += limit
            elif member.context is None:
                read += DEFAULT_MAX_TOKENS
            else:
                read = member.context
            read = read if member.context is None else min(read, member.context)
            total += read * member.kv_bytes * task.request.n
    return total


@dataclass(eq=False)
class Ticket:
    """One request's place among all; a request may be decoded in several phases.

    Attributes:
        stays: Whether it goes on when all that was decoded so far has ended, until it is closed.
        phases: What is decoded for it.
        needed: Bytes of KV caches, estimated; 0 where nobody counts them.
        asked: Whether its caller has asked for output.
        begun: Whether it ever ran: from then on it holds its caches.
        placed: Whether it runs now.
        idle: Rounds since it last could run.
        over: Whether it has ended.
    """

    stays: bool = False
    phases: list[Served] = field(default_factory=list)
    needed: int = 0
    asked: bool = False
    begun: bool = False
    placed: bool = False
    idle: int = 0
    over: bool = False

    @property
    def ready(self) -> list[Served]:
        """The phases that can be decoded on."""
        return [one for one in self.phases if one.hungry]

    @property
    def rows(self) -> int:
        """Answers that it decodes together."""
        left = max((one.left for one in self.phases), default=0)
        return max(left, int(self.stays and not self.over))

    @property
    def bytes(self) -> int:
        """Its share of the KV caches; finished answers have given theirs back."""
        whole = sum(one.rows for one in self.phases)
        if self.stays or not whole:
            return 0 if self.over else self.needed
        return self.needed * sum(one.left for one in self.phases) // whole


class Line:
    """All tickets, in the order in which they came."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self.limits = limits
        self.kept: Kept | None = None
        self._tickets: dict[Ticket, None] = {}

    def __len__(self) -> int:
        """How many requests there are, waiting ones included."""
        return len(self._tickets)

    @property
    def waiting(self) -> list[Ticket]:
        """Requests that never ran."""
        return [ticket for ticket in self._tickets if not ticket.begun]

    def join(self, ticket: Ticket) -> None:
        """Let a request in, to run or to wait.

        Raises:
            OverloadedError: It would have to wait, and ``max_queue`` requests do.
        """
        if ticket in self._tickets:
            return
        most, waiting = self.limits.max_queue, len(self.waiting)
        if most is not None and waiting >= most and (waiting or not self._fits(ticket)):
            raise OverloadedError(
                f"{waiting} request(s) wait already, max_queue={most}, behind {self._used()}; "
                "try again later, send fewer at once, or raise max_queue= or max_concurrent=",
                waiting=waiting,
                limit=most,
            )
        self._tickets[ticket] = None
        self._place()

    def remove_ended(self) -> None:
        """Forget requests that have ended."""
        for ticket in list(self._tickets):
            ticket.over = ticket.over or not (ticket.stays or any(p.live for p in ticket.phases))
            if ticket.over:
                del self._tickets[ticket]

    def next_round(self) -> list[Served]:
        """Choose what is decoded next.

        Returns:
            The phases; a request that waits is among them as soon as there is room for it. One
            that nobody reads steps aside, and is the first to go on when it is read again.
        """
        for ticket in self._tickets:
            ticket.idle = 0 if ticket.ready else ticket.idle + 1
            unread = not ticket.ready and any(one.live for one in ticket.phases)
            ticket.placed = ticket.placed and not unread and ticket.idle <= BETWEEN
        self._place()
        self._bound_kept()
        return [one for ticket in self._tickets if ticket.placed for one in ticket.ready]

    def _place(self) -> None:
        """Let those run for whom there is room, in their order."""
        for ticket in self._tickets:
            if ticket.placed or not ticket.ready:
                continue
            if not self._fits(ticket):
                break
            ticket.placed = ticket.begun = True

    def _bound_kept(self) -> None:
        """What is kept for later gives way to what runs."""
        if self.limits.kv_bytes is not None and self.kept is not None:
            over = self._held() + self.kept.used_bytes - self.limits.kv_bytes
            if over > 0:
                self.kept.shrink(over)

    def expire(self) -> None:
        """End what has waited longer than its ``timeout``, to run or to be read."""
        for ticket in self._tickets:
            for one in ticket.phases:
                if one.live and not (ticket.placed and one.hungry):
                    one.expire(
                        f"its caller did not read {UNREAD} steps"
                        if ticket.begun and not one.hungry
                        else f"behind {self._used()}"
                    )

    def check(self, needed: int) -> None:
        """Refuse a request that can never run.

        Args:
            needed: Bytes of its KV caches.

        Raises:
            MemoryLimitError: There will never be as many.
        """
        limit = self.limits.kv_bytes
        if limit is not None and needed > limit:
            raise MemoryLimitError(
                f"a request may need {needed / 1e9:.3g} GB of KV caches (prompts and max_tokens, "
                f"all answers, all members), kv_cache_gb={limit / 1e9:.3g}; lower max_tokens=, n= "
                "or the number of prompts per call, or raise kv_cache_gb="
            )

    def _fits(self, ticket: Ticket) -> bool:
        """Whether a request can run beside those that do."""
        running = sum(other.rows for other in self._tickets if other.placed)
        if running and running + ticket.rows > self.limits.max_concurrent:
            return False  # one that has more rows than that runs alone
        limit = self.limits.kv_bytes
        if limit is None or ticket.begun:
            return True
        return self._held() + ticket.needed <= limit

    def _held(self) -> int:
        """Bytes of the KV caches of all that ever ran and has not ended."""
        return sum(ticket.bytes for ticket in self._tickets if ticket.begun)

    def _used(self) -> str:
        """What runs now, against the limits."""
        rows = sum(ticket.rows for ticket in self._tickets if ticket.placed)
        text = f"{rows} answer(s) being decoded (max_concurrent={self.limits.max_concurrent}"
        limit = self.limits.kv_bytes
        if limit is None:
            return text + ")"
        return text + f", {self._held() / 1e9:.3g} of kv_cache_gb={limit / 1e9:.3g})"


Estimate = Callable[[], int]
"""Bytes of KV caches that a request may need; asked only where they are counted."""
