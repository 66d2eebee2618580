"""``choose`` on two specialists: the verdict where members err on different questions.

Run: ``python benchmarks/choose_specialists.py [--out PAGE.html]`` after ``specialists.py``. Asks
the 120 questions of the mixed dev set (half sums, half facts; none of them was learned), and prints
what ``langchain-ensemble choose`` would.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import one_thread
from specialists import FOLDER, NAMES, split

from langchain_ensemble import choose_members
from langchain_ensemble.cli.choose import show
from langchain_ensemble.cli.console import stdout

FUSIONS = ("unite", "average", "bytes")


def main() -> None:
    """Choose, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the page")
    out = parser.parse_args().out
    one_thread()
    choice = choose_members(
        {name: str(FOLDER / name) for name in NAMES[:2]},
        [{"prompt": item.prompt, "answer": item.answer} for item in split()["dev"]],
        fusions=FUSIONS,
        max_tokens=12,
        stop=["\n"],
    )
    if out is not None:
        choice.to_html(out)
    show(choice, stdout())


if __name__ == "__main__":
    main()
