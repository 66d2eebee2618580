"""A vocabulary's keys as a tree of bytes: :class:`SortedKeys` whose ranges are nodes with a number.

The tree itself is index tensors (:class:`~langchain_ensemble.fusion.base.Trie`); here is what the
host asks: which column given bytes lead to, and which bytes can follow them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch

from langchain_ensemble.fusion.base import Trie
from langchain_ensemble.vocab.pair_table import Remember
from langchain_ensemble.vocab.sorted_keys import SortedKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary

_REMEMBERED = 65_536

ROUNDS = (8, 128)
"""Keys below a node at most whose mass is summed in the first round, the second; then the rest."""


class ByteTrie(SortedKeys):
    """The keys of one vocabulary, sorted by their bytes, and the tree they make.

    Attributes:
        trie: The tree.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        device: torch.device | None = None,
        remember: Remember | None = None,
    ) -> None:
        """Build the tree.

        Args:
            vocabulary: The vocabulary.
            device: Where its masses are summed; None: on the host.
            remember: The disk cache's ``remember(key, build)``; None builds in memory.
        """
        super().__init__(vocabulary)
        self._host, self._column = _tree(self._keys, self.order, remember)
        self.trie = self._host if device is None else self._host.to(device)
        self._following = lru_cache(_REMEMBERED)(self._find_following)

    def column(self, prefix: bytes) -> int:
        """The node below which all keys stand that start with a prefix; the last one: none."""
        low, high = self.range(prefix)
        if high - low <= 1:
            return low if low < high else self.trie.nothing
        return self._column[low, high]

    def following(self, prefix: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        """The bytes that can follow a prefix within a key.

        Args:
            prefix: Any bytes.

        Returns:
            The bytes, ascending, and the node that each leads to; [c] int64 each.
        """
        return self._following(prefix)

    def _find_following(self, prefix: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        node, trie = self.column(prefix), self._host
        if node == trie.nothing:
            return _pair([], [])
        key, at = self._keys[int(trie.first[node])], len(prefix)
        if at < int(trie.depth[node]):  # inside an edge: one byte, and the same keys
            return _pair([key[at]], [node])
        begin, end = int(trie.child_begin[node]), int(trie.child_begin[node + 1])
        return trie.child_byte[begin:end], trie.child_column[begin:end]


def tree_of(keys: Sequence[bytes | None], remember: Remember | None = None) -> Trie:
    """The tree of some keys.

    Args:
        keys: Bytes of each id; None: it is not in the tree.
        remember: As above.

    Returns:
        The tree; ``order`` holds the ids.
    """
    known = sorted((key, number) for number, key in enumerate(keys) if key)
    order = torch.tensor([number for _, number in known], dtype=torch.int64)
    return _tree([key for key, _ in known], order, remember)[0]


def _pair(first: list[int], second: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(first, dtype=torch.int64), torch.tensor(second, dtype=torch.int64)


def _tree(
    keys: list[bytes], order: torch.Tensor, remember: Remember | None
) -> tuple[Trie, dict[tuple[int, int], int]]:
    """The compressed tree of sorted keys, and which inner node stands for a range."""
    if remember is None:
        made = _tensors(keys)
    else:
        lengths = ",".join(str(len(key)) for key in keys)
        digest = hashlib.sha256(lengths.encode() + b"".join(keys)).hexdigest()
        key = {"part": "byte tree", "format": 1, "rounds": list(ROUNDS), "keys": digest}
        made = remember(key, lambda: _tensors(keys))
    size, ranges = len(keys), made["ranges"].tolist()
    rounds = tuple(made["rounds"].tolist())
    rest = {name: made[name] for name in made if name not in ("ranges", "rounds")}
    trie = Trie(order=order, rounds=rounds, inner=len(ranges), **rest)
    return trie, {(low, high): size + n for n, (low, high) in enumerate(ranges)}


def _tensors(keys: list[bytes]) -> dict[str, torch.Tensor]:
    """What a tree of sorted keys is made of."""
    size = len(keys)
    lows, highs, depths, exact, edges = _nodes(keys)
    nothing = size + len(lows)
    sizes = [high - low for low, high in zip(lows, highs, strict=True)]
    rounds = _rounds(size, sizes, exact, edges)
    parts = torch.tensor([pair for one in rounds for pair in one], dtype=torch.int64)
    parts = parts.reshape(-1, 2).T.contiguous()
    edges.sort()
    edge = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    children = torch.bincount(edge[0], minlength=nothing + 1)
    lengths = torch.tensor([len(k) for k in keys], dtype=torch.int64)
    return {
        "ranges": torch.tensor([lows, highs], dtype=torch.int64).T.contiguous(),
        "rounds": torch.tensor([len(one) for one in rounds], dtype=torch.int64).cumsum(0),
        "part": parts[1].clone(),
        "part_of": parts[0].clone(),
        "depth": torch.tensor([*map(len, keys), *depths, 0]),
        "exact": torch.tensor(
            [*range(size), *(nothing if e is None else e for e in exact), nothing]
        ),
        "first": torch.tensor([*range(size), *lows, 0]),
        "child_begin": torch.nn.functional.pad(children.cumsum(0), (1, 0)),
        "child_byte": edge[1].clone(),
        "child_column": edge[2].clone(),
        "text": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).clone(),
        "text_begin": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
    }


def _nodes(
    keys: list[bytes],
) -> tuple[list[int], list[int], list[int], list[int | None], list[tuple[int, int, int]]]:
    """Inner nodes (low, high, depth, key at the label) and edges (parent, byte, child)."""
    size = len(keys)
    lows, highs, depths = [0], [size], [0]
    exact: list[int | None] = [None]
    edges: list[tuple[int, int, int]] = []

    def attach(child: int, low: int, parent: int) -> None:
        if child < size and len(keys[child]) == depths[parent]:
            exact[parent] = child
        else:
            edges.append((size + parent, keys[low][depths[parent]], child))

    stack = [0]
    for at in range(1, size + 1):
        shared = _shared(keys[at - 1], keys[at]) if at < size else -1
        child, low = at - 1, at - 1
        while stack and depths[stack[-1]] > shared:
            node = stack.pop()
            highs[node] = at
            attach(child, low, node)
            child, low = size + node, lows[node]
        if shared >= 0:
            if depths[stack[-1]] < shared:
                stack.append(len(lows))
                lows.append(low)
                highs.append(at)
                depths.append(shared)
                exact.append(None)
            attach(child, low, stack[-1])
    return lows, highs, depths, exact, edges


def _shared(a: bytes, b: bytes) -> int:
    """Length of the common prefix of two different byte strings."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(n for n in range(size) if a[n] != b[n])


def _rounds(
    keys: int, sizes: list[int], exact: list[int | None], edges: list[tuple[int, int, int]]
) -> list[list[tuple[int, int]]]:
    """What inner nodes are made up of, as (column, part): small nodes first, then what they make.

    Node by node down to the keys would be several times as many parts; one level of the tree after
    the other would be as many rounds as the tree is deep.
    """
    below: list[list[int]] = [[] if key is None else [key] for key in exact]
    for parent, _, child in edges:
        below[parent - keys].append(child)
    rounds: list[list[tuple[int, int]]] = [[] for _ in range(len(ROUNDS) + 1)]
    level = [sum(size > most for most in ROUNDS) for size in sizes]
    for node in sorted(range(len(sizes)), key=lambda n: (sizes[n], -n)):
        made: list[int] = []
        for child in below[node]:
            same = child >= keys and level[child - keys] == level[node]
            made += below[child - keys] if same else [child]
        below[node] = made  # what those of its round above it are made of
        rounds[level[node]] += [(keys + node, part) for part in made]
    return rounds
