"""What holds your own fusion, LLM or chat model to the laws that ours keep."""

from __future__ import annotations

from langchain_ensemble.testing.alignments import toy_alignment
from langchain_ensemble.testing.chat import ChatContract
from langchain_ensemble.testing.fusion import FusionContract
from langchain_ensemble.testing.llm import LLMContract

__all__ = ["ChatContract", "FusionContract", "LLMContract", "toy_alignment"]
