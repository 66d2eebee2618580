"""What you need to hold your own fusion to the laws that ours keep."""

from __future__ import annotations

from langchain_ensemble.testing.alignments import toy_alignment
from langchain_ensemble.testing.fusion import FusionContract

__all__ = ["FusionContract", "toy_alignment"]
