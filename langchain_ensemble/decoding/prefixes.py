"""KV caches that outlive their request, for the next prompt that begins alike.

What is kept is one member's session with one row, and the ids that the row holds. A prompt takes
over the longest common prefix of *ids*: what is reused is what a fresh prefill would have read, so
history never changes an answer. An answer whose own ids are not those that the next prompt spells
is read again from the first id that differs.

Bounded in bytes, least recently used out first. Not thread-safe by itself: every call is made
under the engine's lock.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from langchain_ensemble.errors import MemoryLimitError
from langchain_ensemble.members.base import LoadedMember, MemberSession

USEFUL = 16
"""Fewer ids in common are read again; so are as many at an entry's end that are given up."""

STRIDE = 64
"""Ids compared at a time."""

Key = tuple[LoadedMember, str | None]
"""Whose cache it is, and under which salt it may be reused."""


@dataclass(frozen=True)
class Offer:
    """What one member has read of a prompt of a running request.

    Attributes:
        session: Holds it.
        row: In this row.
        prompt: The whole prompt.
        read: How many of its ids the row holds by now.
    """

    session: MemberSession
    row: int
    prompt: Sequence[int]
    read: int


class Source(Protocol):
    """A request whose prompts may be copied while it runs."""

    def offers(self, member: LoadedMember, salt: str | None) -> Iterable[Offer]:
        """What a member has read of the prompts."""


@dataclass(eq=False)
class Entry:
    """What one member has read.

    Attributes:
        key: Member and salt.
        session: Has one row and belongs to the cache.
        ids: What that row holds.
        nbytes: What the session occupies.
    """

    key: Key
    session: MemberSession
    ids: tuple[int, ...]
    nbytes: int


class PrefixCache:
    """Sessions of an ensemble's members between its requests.

    Attributes:
        max_bytes: The bound; 0 keeps nothing and finds nothing.
        used_bytes: What the kept sessions occupy.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._recent: dict[Entry, None] = {}  # least recently used first
        self._groups: dict[Key, list[Entry]] = {}  # each by ids: those that begin alike touch
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()

    def __len__(self) -> int:
        """How many sessions are kept."""
        return len(self._recent)

    def take(
        self, member: LoadedMember, salt: str | None, ids: Sequence[int]
    ) -> MemberSession | None:
        """Give a session that holds the longest known beginning of a prompt, but its last id.

        The last id is always left to be run, because the logits after it are wanted. The session
        is an entry itself where (nearly) all of it is used, else a copy of what is used.

        Args:
            member: Whose.
            salt: The request's ``cache_salt``.
            ids: What the member reads.

        Returns:
            A session of the caller's own with one row; None where fewer than USEFUL ids are known.
        """
        if self.max_bytes == 0:
            return None
        entry, kept = self._nearest((member, salt), ids)
        offers = [(o, self._of(o, ids, o.read)) for o in self._offers(member, salt)]
        offer, running = max(offers, key=lambda pair: pair[1], default=(None, 0))
        if offer is not None and running >= kept + USEFUL:
            return offer.session.fork([offer.row], running)
        if entry is None or kept < USEFUL:
            return None
        if len(entry.ids) - kept > USEFUL:
            self._touch(entry)
            return entry.session.fork([0], kept)
        self._drop(entry)
        entry.session.truncate([kept])
        return entry.session

    def coming(self, member: LoadedMember, salt: str | None, ids: Sequence[int]) -> int:
        """How far running requests are in prompts that will be of more use than what is known.

        Who waits while this grows reads nothing that another is about to have read.

        Args:
            member: Whose.
            salt: The request's ``cache_salt``.
            ids: What the member is to read.

        Returns:
            Ids that they have read; 0 where there is nothing to wait for.
        """
        if self.max_bytes == 0:
            return 0
        offers = list(self._offers(member, salt))
        now = [self._of(offer, ids, offer.read) for offer in offers]
        known = max([self._nearest((member, salt), ids)[1], *now])
        return sum(
            offer.read
            for offer in offers
            if self._of(offer, ids, len(offer.prompt)) >= known + USEFUL
        )

    def put(
        self,
        member: LoadedMember,
        salt: str | None,
        session: MemberSession,
        ids: Sequence[int],
        row: int = 0,
    ) -> None:
        """Keep a row of a session, or free it where it is of no use.

        Args:
            member: Whose.
            salt: The request's ``cache_salt``.
            session: The session; it belongs to the cache from now on.
            ids: What the row begins with; what follows is given up.
            row: The row; others are given up.
        """
        key, held = (member, salt), tuple(ids)
        if self.max_bytes == 0 or session.chunk is None or len(held) < USEFUL:
            session.close()
            return
        group = self._groups.get(key, [])
        at = bisect_left(group, held, key=_ids)
        if at < len(group) and group[at].ids[: len(held)] == held:  # known, with more after it
            self._touch(group[at])
            session.close()
            return
        if at > 0 and held[: len(group[at - 1].ids)] == group[at - 1].ids:
            self._drop(group[at - 1]).close()  # the new one begins with it
        try:
            session = session.compact(row, len(held))
        except (MemoryLimitError, torch.OutOfMemoryError):  # nobody asked for a copy
            session.close()
            self.clear()
            return
        nbytes = session.nbytes
        if nbytes > self.max_bytes:
            session.close()
            return
        self.shrink(self.used_bytes + nbytes - self.max_bytes)
        entry = Entry(key, session, held, nbytes)
        insort(self._groups.setdefault(key, []), entry, key=_ids)
        self._recent[entry] = None
        self.used_bytes += nbytes

    def shrink(self, nbytes: int) -> int:
        """Free the least recently used entries.

        Args:
            nbytes: How many bytes are needed.

        Returns:
            How many were freed: at least as many, or all there were.
        """
        before = self.used_bytes
        while self._recent and before - self.used_bytes < nbytes:
            self._drop(next(iter(self._recent))).close()
        return before - self.used_bytes

    def clear(self) -> None:
        """Free everything."""
        self.shrink(self.used_bytes)

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Free everything where memory runs out meanwhile, so that the next try has more."""
        try:
            yield
        except (MemoryLimitError, torch.OutOfMemoryError):
            self.clear()
            raise

    def close(self) -> None:
        """Free everything and keep nothing any more: the members are going."""
        self.max_bytes = 0
        self.clear()

    def watch(self, source: Source) -> None:
        """Let others copy what a running request has read; it is forgotten when it is freed."""
        self._sources.add(source)

    def _nearest(self, key: Key, ids: Sequence[int]) -> tuple[Entry | None, int]:
        """The entry that begins most like some ids, and how far; the last id is not counted."""
        group, wanted = self._groups.get(key, []), tuple(ids[:-1])
        at = bisect_left(group, wanted, key=_ids)
        beside = group[max(at - 1, 0) : at + 1]  # in the order of ids, no others are more alike
        shared = max((shared_length(entry.ids, wanted) for entry in beside), default=0)
        if shared == 0:
            return None, 0
        # of all that begin so, the first is the one that ends there, if any does
        return group[bisect_left(group, wanted[:shared], key=_ids)], shared

    def _offers(self, member: LoadedMember, salt: str | None) -> Iterator[Offer]:
        for source in self._sources:
            yield from source.offers(member, salt)

    def _of(self, offer: Offer, ids: Sequence[int], read: int) -> int:
        """How much of some ids a row holds once so much is read; their last is not counted."""
        return min(shared_length(offer.prompt, ids), len(ids) - 1, read)

    def _touch(self, entry: Entry) -> None:
        self._recent[entry] = self._recent.pop(entry)

    def _drop(self, entry: Entry) -> MemberSession:
        """Take an entry out; its session belongs to the caller."""
        del self._recent[entry]
        group = self._groups[entry.key]
        del group[bisect_left(group, entry.ids, key=_ids)]
        if not group:
            del self._groups[entry.key]
        self.used_bytes -= entry.nbytes
        return entry.session


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    end, at = min(len(a), len(b)), 0
    while at < end and a[at : at + STRIDE] == b[at : at + STRIDE]:
        at += STRIDE
    while at < end and a[at] == b[at]:
        at += 1
    return min(at, end)


def _ids(entry: Entry) -> tuple[int, ...]:
    return entry.ids
