"""What you need to hold your own fusion, or your own LLM, to the laws that ours keep."""

from __future__ import annotations

from langchain_ensemble.testing.alignments import toy_alignment
from langchain_ensemble.testing.fusion import FusionContract
from langchain_ensemble.testing.llm import LLMContract

__all__ = ["FusionContract", "LLMContract", "toy_alignment"]
