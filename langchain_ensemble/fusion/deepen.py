"""DeePEn: fuse in a space that members with different tokenizers share.

Huang et al., NeurIPS 2024, arXiv:2404.12715. Each member's tokens are told by their similarity to
the *anchors*, tokens that all members have (``relative.py``); ``t = sum_i w_i p_i R_i`` is the
members' mean there; a short search moves main's logits towards ``t`` (``search.py``).

Where we depart from the authors' code and why:

* Anchors are equal *bytes* in main's id order; theirs are equal strings in a Python set's order.
* END is outside the search: ``e = sum_i w_i e_i``; ``t`` is taken over keys alone and normalised;
  the answer is ``((1 - e) softmax(z_T), e)``. As an axis of the relative space END could move by no
  more than any logit, so others could never end a main that does not want to. Theirs hands the step
  to main wherever main's best id is its end token.
* Where every member agrees with main (``max |t / r_main - 1| <= 1e-5``), main's distribution is
  returned as it is; theirs still applies the weight decay.
* A rate per main member; theirs is one number. Weights sum to 1 within rounding, per row.
* Where the vocabulary is too large for a dense search, main's *support* (the smallest set of tokens
  with 0.999 of the mass, at most ``support_cap``) is searched and the rest is one tail token; its
  row is the mean row, with the exact rows of the next 64 tokens mixed in. So a row of the search
  costs ``support x A``, not ``V x A``, and nothing of size [V, A] needs to exist.
* Rows are made when they are asked for, and those asked for last are kept (``rows.py``): at most
  ``TABLE_BYTES`` a member, whatever the vocabularies; a table only where it fits into as much.
* Where only the best key is asked for (``DeepenFuser.best``), rows that the certificate of
  ``search.py`` decides are not searched.
* A member on a device of its own is described there; its relative vector [N, A] is what crosses.

How near support and tail come to the dense search (uniform weights, 5 steps at 0.15; total
variation of the fused rows, mean and largest; share of rows with the same best token):

* stories260K as main with babyllama-361, 372 positions of real text: 5e-4, 5e-3; 372 of 372 (the
  fusion itself changes main's best token in 72 of them). Main and auxiliary exchanged: 1e-3, 5e-3;
  372 of 372. With the mean row alone as the tail's: 8e-4, 2e-2 and 2e-3, 2e-2.
* random rows, 4,000 tokens, ``support_cap`` 512. Supports of 136 tokens: 7e-4, 2e-3; 64 of 64.
  Where 512 tokens hold 0.996: 1e-3, 6e-3; 63 of 64. Where they hold 0.96: 1e-2, 2e-2; 64 of 64.
  Where they hold 0.81: 5e-2, 6e-2; 61 of 64. Where they hold 0.45: 0.09, 0.09; 44 of 64.

So flat rows are what the cap costs: mass past it stays in the tail, which keeps its share (less the
decay), and no token of it can be promoted. Raise ``support_cap`` for members that are that unsure.
With 10 steps at 0.5 the search itself is unstable, and 99 % of the real rows keep their best token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.fusion.base import FusionContext, Needs
from langchain_ensemble.fusion.deepen_fuser import DeepenFuser, SearchSettings
from langchain_ensemble.fusion.relative import relative_representation, to_relative
from langchain_ensemble.fusion.search import (
    certain,
    certified,
    check_search,
    search,
    search_support,
    tail_levels,
)
from langchain_ensemble.fusion.tables import DTYPES, TABLE_BYTES, member_rows, select_anchors

__all__ = [
    "DENSE_CELLS",
    "TABLE_BYTES",
    "Deepen",
    "DeepenFuser",
    "certain",
    "certified",
    "relative_representation",
    "search",
    "search_support",
    "select_anchors",
    "tail_levels",
    "to_relative",
]

MIN_COMMON = 100
"""Fewer common tokens than this are refused unless ``anchors`` says so."""

DENSE_CELLS = 1 << 24
"""``V x A`` up to which every member's table is kept and the whole vocabulary is searched."""


@dataclass(frozen=True)
class Deepen:
    """Fusion in the relative space.

    Attributes:
        search_steps: Adam steps, 0..10 (the paper: 5).
        search_lr: Rate of the search (the paper's published run: 0.15), one or one per main's name.
        anchors: ``"all"`` common tokens (the paper), how many of them evenly spaced, or main's ids.
        support_mass: Mass of main's (and each auxiliary's) distribution that is kept exactly.
        support_cap: Tokens of a support at most.
        dense: True: keep tables, however large, and search the whole vocabulary; False: support
            and tail, hot rows; None: whichever the sizes call for.
        precision: What tables are stored in; computing is float32.
    """

    search_steps: int = 5
    search_lr: float | Mapping[str, float] = 0.15
    anchors: Literal["all"] | int | tuple[int, ...] = "all"
    support_mass: float = 0.999
    support_cap: int = 512
    dense: bool | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    name: ClassVar[str] = "deepen"

    def __post_init__(self) -> None:
        """Check every setting."""
        if isinstance(self.anchors, list):
            object.__setattr__(self, "anchors", tuple(self.anchors))
        listed = (
            self.search_lr.values() if isinstance(self.search_lr, Mapping) else [self.search_lr]
        )
        for rate in listed:
            check_search(self.search_steps, rate)
        _check_anchors(self.anchors)
        if self.precision not in DTYPES:
            raise ConfigError(unknown_name("precision of fusion='deepen'", self.precision, DTYPES))
        if not 0.0 < self.support_mass <= 1.0:
            raise ConfigError(
                f"fusion='deepen' has support_mass={self.support_mass!r}; it must be in (0, 1]"
            )
        if self.support_cap < 1:
            raise ConfigError(
                f"fusion='deepen' has support_cap={self.support_cap!r}; it must be at least 1"
            )

    @property
    def needs(self) -> Needs:
        """Input embeddings, and enough common tokens to be anchors."""
        if self.anchors == "all":
            return Needs(embeddings=True, min_common=MIN_COMMON)
        count = self.anchors if isinstance(self.anchors, int) else len(self.anchors)
        return Needs(embeddings=True, min_common=count)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, without the name."""
        rate = dict(self.search_lr) if isinstance(self.search_lr, Mapping) else self.search_lr
        return {
            "search_steps": self.search_steps,
            "search_lr": rate,
            "anchors": list(self.anchors) if isinstance(self.anchors, tuple) else self.anchors,
            "support_mass": self.support_mass,
            "support_cap": self.support_cap,
            "dense": self.dense,
            "precision": self.precision,
        }

    def rate(self, main: str) -> float:
        """Search rate for a main member.

        Raises:
            ConfigError: ``search_lr`` is a mapping that does not name it.
        """
        if not isinstance(self.search_lr, Mapping):
            return self.search_lr
        if main not in self.search_lr:
            raise ConfigError(unknown_name("main member in search_lr", main, self.search_lr))
        return self.search_lr[main]

    def prepare(self, context: FusionContext) -> DeepenFuser:
        """Build or look up what the relative representations need (tables: minutes if large)."""
        alignment = context.alignment
        rate = self.rate(alignment.main.name)
        anchors = select_anchors(self.anchors, alignment)
        whole = self.dense
        if whole is None:
            widest = max(keys.width for keys in alignment.members)
            whole = widest * len(anchors) <= DENSE_CELLS
        stored = True if whole else self.dense  # None: where a table is small enough
        settings = SearchSettings(self.search_steps, rate, self.support_mass, self.support_cap)
        rows = [
            member_rows(context, i, keys.from_union[anchors], stored, self.precision, settings.most)
            for i, keys in enumerate(alignment.members)
        ]
        return DeepenFuser(alignment, rows, whole, settings)


def _check_anchors(anchors: object) -> None:
    good = anchors == "all"
    if isinstance(anchors, int) and not isinstance(anchors, bool):
        good = anchors >= 1
    if isinstance(anchors, tuple):
        good = bool(anchors) and all(isinstance(a, int) for a in anchors)
    if not good:
        raise ConfigError(
            f"fusion='deepen' has anchors={anchors!r}; give 'all', a number of anchors, or a list "
            "of main's token ids"
        )
