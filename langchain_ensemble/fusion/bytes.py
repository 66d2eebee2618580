"""Fusion byte by byte: no alignment of vocabularies at all.

Each member's next-token distributions are turned into next-byte distributions along the paths its
tokens take through the answer (``decoding`` brings them), over 256 bytes and END, and a power mean
is taken:

    r(c | s)  in proportion to  (sum_i w_i P_i(c | s)^a)^(1/a)

with ``a`` = 1 the arithmetic mean, 0 the geometric ``prod_i P_i(c | s)^w_i``. A geometric mean lets
a member that knows nothing spoil each byte of a name that another knows, all unlikely to it.
Byte distributions of tokenized models: Phan et al., ICLR 2025; Hayase et al., ICML 2026.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.fusion.base import FusionContext, Needs
from langchain_ensemble.fusion.bytes_walk import Walker
from langchain_ensemble.fusion.combine import power_mean

MEANS = {
    "geometric": 0.0,
    "arithmetic": 1.0,
    "harmonic": -1.0,
    "max": math.inf,
    "min": -math.inf,
}
"""Powers that have a name."""


@dataclass(frozen=True)
class Bytes:
    """Weighted power mean of the members' next bytes.

    Attributes:
        mean: ``"arithmetic"`` (default), ``"geometric"``, ``"harmonic"``, ``"max"``, ``"min"``, or
            the power itself, a finite number.
    """

    mean: str | float = "arithmetic"
    name: ClassVar[str] = "bytes"

    def __post_init__(self) -> None:
        """Check the mean."""
        if isinstance(self.mean, str):
            if self.mean not in MEANS:
                raise ConfigError(unknown_name("mean of fusion='bytes'", self.mean, MEANS))
        elif isinstance(self.mean, bool) or not isinstance(self.mean, int | float):
            raise ConfigError(
                f"fusion='bytes' has mean={self.mean!r}; it must be 'geometric', 'arithmetic' or "
                "the power, a number"
            )
        elif not math.isfinite(self.mean) or 0 < abs(self.mean) < 1e-3:
            raise ConfigError(
                f"fusion='bytes' has mean={self.mean!r}; a power is finite ('max' and 'min' are "
                "the ends) and not that near 0 ('geometric' is 0)"
            )

    @property
    def needs(self) -> Needs:
        """Every logit, and the paths through the answer."""
        return Needs(logprobs="dense", paths=True)

    @property
    def power(self) -> float:
        """``a``."""
        return MEANS[self.mean] if isinstance(self.mean, str) else float(self.mean)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        return {"mean": self.mean}

    def prepare(self, context: FusionContext) -> BytesFuser:
        """Take the trees of keys."""
        return BytesFuser(self.power, context)


class BytesFuser(Walker):
    """:class:`Bytes` made ready for one ensemble."""

    def __init__(self, power: float, context: FusionContext) -> None:
        """Take the trees of keys."""
        super().__init__(context)
        self._power = power

    def over_bytes(self, logprobs: Tensor, weights: Tensor) -> Tensor:
        """The power mean; see :class:`Walker`."""
        return power_mean(logprobs, weights, self._power)
