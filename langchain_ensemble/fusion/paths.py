"""The paths that one member's tokens take through the answer, and what follows them byte by byte.

At a boundary ``b`` the member has said what comes next; ``W_b`` is the probability of the answer's
bytes up to there with a token ending at ``b``. A path is at a node of the member's tree of keys:
the bytes since ``b``. Knows tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langchain_ensemble.fusion.tries import Trie

BYTES = 256


@dataclass(frozen=True)
class Paths:
    """Where one member is in N rows, on S paths each.

    Attributes:
        flat: Log-masses of all nodes of all rows that are remembered, one after the other.
        base: [N, S] where those of each path's boundary begin in ``flat``.
        weight: [N, S] ``log W_b``, up to a constant a row; -inf: no path.
        node: [N, S] the column of the node that the bytes since the boundary lead to.
        depth: [N, S] how many bytes that are.
        end: [N] log of the weight with which the answer ends here.
    """

    flat: Tensor
    base: Tensor
    weight: Tensor
    node: Tensor
    depth: Tensor
    end: Tensor

    def to(self, device: torch.device) -> Paths:
        """The same paths on another device, with all that is remembered."""
        moved: dict[str, Tensor] = {name: value.to(device) for name, value in vars(self).items()}
        return Paths(**moved)

    def mass(self, columns: Tensor) -> Tensor:
        """Log of the weight on some nodes [N, S, ...], all paths together: [N, ...]."""
        more = columns.dim() - self.base.dim()
        base = self.base.reshape(*self.base.shape, *[1] * more)
        weight = self.weight.reshape(base.shape)
        return (self.flat.take(base + columns) + weight).logsumexp(1)

    def down(self, node: Tensor, more: Tensor) -> Paths:
        """The same paths further on.

        Args:
            node: [N, S] where they are.
            more: [N] how many bytes further.

        Returns:
            The paths; the answer does not end there.
        """
        nowhere = torch.full_like(self.end, -torch.inf)
        return replace(self, node=node, depth=self.depth + more[:, None], end=nowhere)

    def following(self, trie: Trie) -> tuple[Tensor, Tensor]:
        """What can come next.

        Args:
            trie: The member's tree.

        Returns:
            The log of the weight of every byte and of END [N, 257], not normalised, and the node
            that each byte leads to [N, S, 256].
        """
        columns = children(trie, self.node, self.depth)
        bytes_ = self.mass(columns)
        return torch.cat([bytes_, self.end[:, None]], -1), columns

    def ended(self, trie: Trie) -> Tensor:
        """[N] the share of the weight that ends a token exactly here (not that of new paths)."""
        whole = self.mass(self.node)
        share = self.mass(label_key(trie, self.node, self.depth)) - whole
        return share.masked_fill(whole == -torch.inf, 0.0).exp().clamp_max(1.0)


def fresh(trie: Trie, logprobs: Tensor, end: Tensor) -> Paths:
    """Paths of a member of which nothing is known but what it says now.

    Args:
        trie: Its tree.
        logprobs: [N, V_i].
        end: [N].
    """
    rows = len(end)
    masses = trie.masses(logprobs.index_select(-1, trie.order))
    base = torch.arange(rows, device=end.device)[:, None] * masses.shape[-1]
    nowhere = torch.zeros_like(base)
    root = torch.full_like(base, trie.root)
    return Paths(masses.flatten(), base, end.new_zeros(rows, 1), root, nowhere, end)


def children(trie: Trie, node: Tensor, depth: Tensor) -> Tensor:
    """The node that every byte leads to.

    Args:
        trie: The tree.
        node: [...] columns.
        depth: [...] bytes of each that are consumed; less than its label's inside an edge.

    Returns:
        [..., 256] columns, the last one where a byte leads nowhere.
    """
    found = node.new_full((*node.shape, BYTES + 1), trie.nothing)
    begin = trie.child_begin[node]
    count = trie.child_begin[node + 1] - begin
    number = torch.arange(BYTES, device=node.device)
    there = number < count[..., None]
    at = (begin[..., None] + number).clamp_max(len(trie.child_byte) - 1)
    byte = torch.where(there, trie.child_byte[at], BYTES)
    found.scatter_(-1, byte, trie.child_column[at])
    found[..., BYTES] = trie.nothing
    within = depth < trie.depth[node]
    found.masked_fill_(within[..., None], trie.nothing)
    at = (trie.text_begin[trie.first[node]] + depth).clamp_max(len(trie.text) - 1)
    byte = torch.where(within, trie.text[at].long(), BYTES)
    found.scatter_(-1, byte[..., None], node[..., None])
    return found[..., :BYTES]


def label_key(trie: Trie, node: Tensor, depth: Tensor) -> Tensor:
    """The key that the bytes to a place in the tree are, the last column where there is none."""
    return torch.where(depth == trie.depth[node], trie.exact[node], trie.nothing)
