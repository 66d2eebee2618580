"""The paths of one member's tokens through the answers of B rows, for fusions over bytes.

The same boundaries as :mod:`boundary` keeps, with the masses of all nodes of the keys' tree in
place of block sums: what goes on with any byte is then read, not summed. A boundary's slot is free
again once no key is open from there; where all are taken, the oldest goes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.decoding.boundary import BOUNDARIES, SLOTS, BoundaryTracker
from langchain_ensemble.decoding.protocols import ByteTrieLike, Voice
from langchain_ensemble.decoding.ranges import NodeLayout
from langchain_ensemble.decoding.state import Row
from langchain_ensemble.fusion.base import MemberDistribution, Paths

HEAD = 3
"""What comes before a row's slots: the row, the slot that is written, whether one is."""

EACH = 4
"""Numbers of a slot: the node before, the key that ends here, the node after, its bytes."""


class PathTracker(BoundaryTracker):
    """The paths of one member, for B rows."""

    def __init__(self, keys: ByteTrieLike, rows: int) -> None:
        """Start with no boundary.

        Args:
            keys: The member's keys as a tree.
            rows: B.
        """
        super().__init__(keys, rows, NodeLayout(keys.trie))
        self._tree = keys

    def follow(
        self,
        distribution: MemberDistribution,
        held: Sequence[bytes],
        stands: Sequence[int | None],
        at: Sequence[int],
    ) -> tuple[Paths, Tensor]:
        """Go on to the end of the answers, and note a boundary where the member stands at one.

        Args:
            distribution: What the member says where it stands, n rows.
            held: Bytes of every row's answer as the member would hold them, a lead included.
            stands: After how many of those bytes the member stands (all, or none before a lead);
                None: it has not read them and has no boundary here.
            at: Which of the tracker's rows these are.

        Returns:
            The paths, and [n] the probability that a token ends here (0 where it does not stand).
        """
        flat, whole = self._tensors(distribution.logprobs.device)
        places = array("q")
        for row, answer, position in zip(at, held, stands, strict=True):
            places.extend(self._places(row, answer, position))
        plan = torch.frombuffer(places, dtype=torch.int64).to(flat.device).view(len(at), -1)
        rows, slot, here = plan[:, 0], plan[:, 1:2], plan[:, 2] > 0
        before, exact, after, since = plan[:, HEAD:].view(len(at), EACH, SLOTS).unbind(1)
        first = rows[:, None] * SLOTS + torch.arange(SLOTS, device=flat.device)
        base = first * self._layout.width
        path = whole.index_select(0, rows)
        through = (flat.take(base + before) + path).logsumexp(-1)
        ended = (flat.take(base + exact) + path).logsumexp(-1)
        lost = through == -torch.inf  # the start, or bytes that no key spells: paths start anew
        shift = through.masked_fill(lost, 0.0)
        new = (ended - shift).masked_fill(lost, 0.0)
        path = (path - shift[:, None]).scatter(1, slot, new[:, None])
        whole.index_copy_(0, rows, path)
        self._store(flat, first.gather(1, slot)[:, 0], distribution.logprobs)
        end = torch.where(here, new + distribution.end, -torch.inf)
        weighed = torch.where(here, new.exp().clamp_max(1.0), 0.0)
        return Paths(flat, base, path, after, since, end), weighed

    def _store(self, flat: Tensor, target: Tensor, logprobs: Tensor) -> None:
        """Write what is said in n rows to their slots [n]."""
        width = self._layout.width
        stored = flat[: len(self._next) * SLOTS * width].view(-1, width)
        for mark in self._marks:
            mark.undo.append((target, stored.index_select(0, target)))
        keys = logprobs.index_select(1, self._order(logprobs.device))
        stored.index_copy_(0, target, self._layout.filled(keys))

    def _places(self, row: int, answer: bytes, position: int | None) -> list[int]:
        """One row's plan."""
        nothing = self._layout.nothing
        before, exact, since = [nothing] * SLOTS, [nothing] * SLOTS, [0] * SLOTS
        kept = []
        for begin, where in self._visited[row]:
            span = answer[begin:]
            node = self._tree.column(span)
            if node == nothing:
                continue  # no key will be open from there again
            kept.append((begin, where))
            found = self._tree.position(span)
            before[where], since[where] = node, len(span)
            exact[where] = nothing if found is None else found
        self._visited[row] = kept
        after, slot = list(before), BOUNDARIES
        if position is not None:
            slot = self._free(row)
            self._visited[row].append((position, slot))
            before[slot] = exact[slot] = nothing
            after[slot] = self._tree.column(answer[position:])
            since[slot] = len(answer) - position
        return [row, slot, int(position is not None), *before, *exact, *after, *since]

    def _free(self, row: int) -> int:
        """A slot from which no key is open, else the oldest boundary's."""
        taken = {slot for _, slot in self._visited[row]}
        for slot in range(BOUNDARIES):
            if slot not in taken:
                return slot
        (_, oldest), *self._visited[row] = self._visited[row]
        return oldest


def tracker_of(voice: Voice, rows: int, *, weigh: bool) -> BoundaryTracker | None:
    """What is remembered of a voice's boundaries.

    Args:
        voice: The voice.
        rows: B.
        weigh: Whether open boundaries are weighed.

    Returns:
        Its paths where the fusion asks for them; None where nothing has to be known.
    """
    if voice.trie is not None:
        return PathTracker(voice.trie, rows)
    if weigh and voice.sorted_keys is not None:
        return BoundaryTracker(voice.sorted_keys, rows)
    return None


def follow_all(
    trackers: Sequence[BoundaryTracker | None],
    rows: Sequence[Row],
    distributions: Sequence[MemberDistribution],
    at: Sequence[int],
) -> list[tuple[Paths, Tensor]]:
    """:meth:`PathTracker.follow` of every voice, main first; inside a character main alone stands.

    Args:
        trackers: One a voice.
        rows: The rows that choose, n of them.
        distributions: What each voice says there.
        at: Which of the trackers' rows these are.

    Returns:
        One a voice, with the probability [n] that a token ends there.
    """
    found = []
    for place, tracker in enumerate(trackers):
        assert isinstance(tracker, PathTracker)  # the fusion asked for paths
        held = [b" " * row.tracks[place].lead + row.answer for row in rows]
        begun = [row.records or row.grammar is not None for row in rows]  # masks know no lead
        stands = [
            None if place and row.fragment else len(own) if after else 0
            for own, row, after in zip(held, rows, begun, strict=True)
        ]
        found.append(tracker.follow(distributions[place], held, stands, at))
    return found
