"""Seeing an answer: what each member wanted at every token, as data, as a page, as a summary."""

from __future__ import annotations

from langchain_ensemble.trace.collecting import is_tracing, keep, tracing
from langchain_ensemble.trace.recording import Trace
from langchain_ensemble.trace.summary import summary

__all__ = ["Trace", "is_tracing", "keep", "summary", "tracing"]
