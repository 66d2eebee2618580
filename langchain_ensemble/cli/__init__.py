"""The command line ``langchain-ensemble``: run, check, selftest, cache, info."""

from __future__ import annotations

from langchain_ensemble.cli.app import main

__all__ = ["main"]
