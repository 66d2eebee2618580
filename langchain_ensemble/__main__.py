"""``python -m langchain_ensemble`` is the command line."""

from __future__ import annotations

from langchain_ensemble.cli import main

if __name__ == "__main__":
    main()
