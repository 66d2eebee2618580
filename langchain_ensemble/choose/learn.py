"""Weights that say a dev set in the fewest bits: what the objective needs of each text.

The objective is the bits per byte of some texts under the fused members, as ``score`` gives them
with other weights. The members read each text once; of what they say, only what the fusion needs is
kept:

* ``gac`` and the arithmetic means (``average``, ``bytes``) are linear in the weights,
  ``P(x) = sum_i W_i q_i(x)``: one number a member and token. ``-log P`` is convex.
* The geometric means are log-linear, ``P(x) = exp(sum_i W_i log q_i(x)) / Z``: whole rows, since
  ``Z`` depends on the weights. ``-log P`` is a log-sum-exp less a linear term, convex.
* Any other fusion is asked for its score anew at every point, over kept rows, and slopes are
  differences. ``unite`` is convex (for two members, where nobody leaves the union); ``deepen`` is
  not, and no certificate is given.

``W`` are the weights after open boundaries and abstention: an affine function of the weights where
nobody abstains. Rows are kept up to :data:`KEEP_BYTES`; a text beyond is read again at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from langchain_ensemble.decoding.fusing import spread, standing, weighed
from langchain_ensemble.decoding.score import Chunk
from langchain_ensemble.fusion.base import Fuser, Fusion
from langchain_ensemble.fusion.voices import LOG_TINY

KEEP_BYTES = 2**30
"""What is kept of all texts together at most; texts beyond are read again at every point."""

STEP = 0.01
"""Of the differences that stand for slopes where a fusion is asked for its score only."""

Kind = Literal["linear", "log-linear", "asked"]


class Rows(Protocol):
    """Some rows of one text, as far as the objective needs them."""

    @property
    def nbytes(self) -> int:
        """What they occupy."""

    def nats(self, weights: Tensor) -> Tensor:
        """Negative log-likelihood of the rows' keys, summed.

        Args:
            weights: [M] float64; a differentiable function of them, unless the kind is asked.
        """


Read = Callable[[int], list[Rows]]
"""Reads a text (by its number) with all members, rows by rows."""


@dataclass(frozen=True)
class _Heard:
    """Who has a say in N rows: [N, M] each, or None."""

    abstain: Tensor | None
    ends: Tensor | None

    @classmethod
    def of(cls, chunk: Chunk) -> _Heard:
        abstain, ends = standing(chunk.distributions, chunk.silent, chunk.boundary)
        return cls(abstain, None if ends is None else ends.double())

    def weights(self, weights: Tensor, like: Tensor) -> Tensor:
        """[N, M] effective weights, N and device as of a tensor."""
        return weighed(weights.to(like.device).expand(len(like), -1), self.abstain, self.ends)


@dataclass(frozen=True)
class LinearRows:
    """``P = sum_i W_i q_i``: q of the keys that came, [N, M] float64."""

    heard: _Heard
    probs: Tensor

    @property
    def nbytes(self) -> int:
        """What they occupy."""
        return 3 * self.probs.nbytes

    def nats(self, weights: Tensor) -> Tensor:
        """See :class:`Rows`."""
        share = self.heard.weights(weights, self.probs)
        return -(share * self.probs).sum(-1).clamp_min(torch.finfo(torch.float32).tiny).log().sum()


@dataclass(frozen=True)
class LogLinearRows:
    """``P = exp(sum_i W_i l_i) / Z``: l of every key and END, [M, N, S] float32, END last."""

    heard: _Heard
    logprobs: Tensor
    targets: Tensor

    @property
    def nbytes(self) -> int:
        """What they occupy."""
        return self.logprobs.nbytes

    def nats(self, weights: Tensor) -> Tensor:
        """See :class:`Rows`."""
        share = self.heard.weights(weights, self.targets)  # [N, M]
        nobody = self.logprobs.amax(0) == -torch.inf
        said = self.logprobs.double().clamp_min(LOG_TINY)  # what a mute member holds has weight 0
        mixed = torch.einsum("nm,mns->ns", share, said).masked_fill(nobody, -torch.inf)
        return (mixed.logsumexp(-1) - mixed.gather(1, self.targets[:, None])[:, 0]).sum()


@dataclass(frozen=True)
class AskedRows:
    """What the members say in N rows; the fusion is asked for its score."""

    heard: _Heard
    chunk: Chunk
    targets: Tensor
    fuser: Fuser

    @property
    def nbytes(self) -> int:
        """What they occupy."""
        return sum(one.logprobs.nbytes for one in self.chunk.distributions)

    def nats(self, weights: Tensor) -> Tensor:
        """See :class:`Rows`; no slopes."""
        said = self.chunk.distributions
        share = self.heard.weights(weights, self.targets).float()
        told = spread(said, share, range(len(said)), len(said), self.fuser)
        return -self.fuser.score(*told, self.targets).double().sum()


def _alone(chunk: Chunk, fuser: Fuser, place: int) -> tuple[Any, Tensor]:
    """What the fusion takes where all weight is on one member."""
    said = chunk.distributions
    share = torch.zeros(len(said[0].end), len(said), device=said[0].end.device)
    share[:, place] = 1.0
    return spread(said, share, range(len(said)), len(said), fuser)


def take_linear(chunk: Chunk, targets: Tensor, fuser: Fuser) -> Rows:
    """Keep what a fusion needs that is linear in the weights."""
    members = range(len(chunk.distributions))
    said = [fuser.score(*_alone(chunk, fuser, i), targets) for i in members]
    return LinearRows(_Heard.of(chunk), torch.stack(said, -1).double().exp())


def take_log_linear(chunk: Chunk, targets: Tensor, fuser: Fuser) -> Rows:
    """Keep what a fusion needs that is log-linear in the weights."""
    said = [fuser(*_alone(chunk, fuser, i)) for i in range(len(chunk.distributions))]
    rows = torch.stack([torch.cat([one.logprobs, one.end[:, None]], -1) for one in said])
    return LogLinearRows(_Heard.of(chunk), rows, targets.clone())  # not of inference mode


def take_all(chunk: Chunk, targets: Tensor, fuser: Fuser) -> Rows:
    """Keep everything."""
    return AskedRows(_Heard.of(chunk), chunk, targets, fuser)


@dataclass(frozen=True)
class AskedBytes:
    """What the members say of N bytes, [M, N, 257]; the fusion is asked for its mean."""

    heard: _Heard
    logprobs: Tensor
    targets: Tensor
    mix: Callable[[Tensor, Tensor], Tensor]

    @property
    def nbytes(self) -> int:
        """What they occupy."""
        return self.logprobs.nbytes

    def nats(self, weights: Tensor) -> Tensor:
        """See :class:`Rows`; no slopes."""
        share = self.heard.weights(weights, self.targets).float()
        mixed = self.mix(self.logprobs, share).gather(1, self.targets[:, None])
        return -mixed.clamp_min(LOG_TINY).double().sum()


def take_rows(kind: Kind, chunk: Chunk, targets: Tensor, fuser: Fuser) -> Rows:
    """Keep of some tokens what the objective needs.

    Args:
        kind: What that is.
        chunk: What the members say there.
        targets: The keys that came, [N].
        fuser: The fusion.
    """
    take = {"linear": take_linear, "log-linear": take_log_linear, "asked": take_all}[kind]
    return take(chunk, targets, fuser)


def take_bytes(
    kind: Kind,
    said: Tensor,
    silent: Tensor,
    data: bytes,
    mix: Callable[[Tensor, Tensor], Tensor],
) -> Rows:
    """Keep of a text's bytes what the objective needs.

    Args:
        kind: What that is.
        said: [M, N, 257] what the members say before each byte.
        silent: [N, M] bool, who says nothing.
        data: The N bytes.
        mix: The fusion's mean over bytes.
    """
    heard = _Heard(silent.clone(), None)  # not of inference mode
    targets = torch.tensor(list(data))
    if kind == "linear":
        own = said.gather(2, targets.expand(len(said), -1)[:, :, None])[:, :, 0]
        return LinearRows(heard, own.T.double().exp())
    if kind == "log-linear":
        return LogLinearRows(heard, said.clone(), targets)
    return AskedBytes(heard, said.clone(), targets, mix)


def kind_of(fusion: Fusion) -> Kind:
    """What a fusion's objective is made of."""
    if fusion.name == "gac":
        return "linear"
    mean = fusion.settings().get("mean") if fusion.name in ("average", "bytes") else None
    if mean in ("geometric", "arithmetic"):
        return "log-linear" if mean == "geometric" else "linear"
    return "asked"


def is_convex(fusion: Fusion) -> bool:
    """Whether the objective is known to be convex, so that a certificate means something."""
    return kind_of(fusion) != "asked" or fusion.name == "unite"


class Texts:
    """The texts of a dev set, as far as weights are learned on them.

    Attributes:
        kind: What of them is needed.
        sizes: Bytes of each.
        again: Texts that are read anew at every point, because they would not fit.
    """

    def __init__(
        self,
        read: Read,
        sizes: Sequence[int],
        kind: Kind,
        keep_bytes: int = KEEP_BYTES,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Read every text once.

        Args:
            read: Reads one.
            sizes: Bytes of each.
            kind: What of it is needed.
            keep_bytes: What is kept at most.
            on_progress: Called with (stage, done, total).
        """
        self._read, self.kind = read, kind
        self.sizes = list(sizes)
        self._kept: list[list[Rows] | None] = []
        left = keep_bytes
        for number in range(len(sizes)):
            rows = read(number)
            size = sum(one.nbytes for one in rows)
            self._kept.append(rows if size <= left else None)
            left -= size if size <= left else 0
            if on_progress is not None:
                on_progress("reading texts", number + 1, len(sizes))
        self.again = sum(rows is None for rows in self._kept)

    def _rows(self, number: int) -> list[Rows]:
        kept = self._kept[number]
        return self._read(number) if kept is None else kept

    def nats(self, weights: Sequence[float], numbers: Sequence[int]) -> list[float]:
        """Negative log-likelihood of some texts.

        Args:
            weights: One a member, main first.
            numbers: Which texts.

        Returns:
            Nats of each.
        """
        given = torch.tensor(weights, dtype=torch.float64)
        with torch.no_grad():
            return [
                sum(float(rows.nats(given)) for rows in self._rows(number)) for number in numbers
            ]

    def objective(self, numbers: Sequence[int]) -> Callable[[Sequence[float]], Any]:
        """Bits per byte of some texts, with slopes, for the solver.

        Args:
            numbers: Which texts.
        """
        unit = torch.log(torch.tensor(2.0)).item() * sum(self.sizes[n] for n in numbers)
        if self.kind == "asked":
            return lambda weights: self._differences(weights, numbers, unit)
        return lambda weights: self._slopes(weights, numbers, unit)

    def _slopes(
        self, weights: Sequence[float], numbers: Sequence[int], unit: float
    ) -> tuple[float, list[float]]:
        given = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        total = 0.0
        for number in numbers:
            for rows in self._rows(number):
                nats = rows.nats(given) / unit
                nats.backward()  # type: ignore[no-untyped-call]
                total += float(nats.detach())
        assert given.grad is not None
        slopes = given.grad - (given.grad * given.detach()).sum()
        return total, slopes.tolist()

    def _differences(
        self, weights: Sequence[float], numbers: Sequence[int], unit: float
    ) -> tuple[float, list[float]]:
        def value(at: Sequence[float]) -> float:
            return sum(self.nats(at, numbers)) / unit

        here, slopes = value(weights), []
        for corner in range(len(weights)):
            ahead = value(_towards(weights, corner, STEP))
            if weights[corner] > 2 * STEP:
                slopes.append((ahead - value(_towards(weights, corner, -STEP))) / (2 * STEP))
            else:
                slopes.append((ahead - here) / STEP)
        return here, slopes


def _towards(weights: Sequence[float], corner: int, step: float) -> list[float]:
    return [w + step * (float(i == corner) - w) for i, w in enumerate(weights)]
