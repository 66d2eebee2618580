"""Make ``benchmarks/quality.md``: ``python benchmarks/quality.py [PART ...]``.

Parts, each a script of its own that keeps its figures in ``results/`` and goes on where it was
broken off: ``train`` (``specialists.py``, half an hour of one thread), ``bits``, ``prompted``,
``specialists``,
``gates`` (``gates.py``); none given: all. The page is written at the end from whatever is there.
Delete a result file to measure it anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import quality_table

HERE = Path(__file__).parent
PARTS = {
    "train": "specialists.py",
    "bits": "quality_bits.py",
    "prompted": "quality_prompted.py",
    "specialists": "quality_specialists.py",
    "gates": "gates.py",
}


def main() -> None:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default: all")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = []
    for part in given.parts or PARTS:
        if subprocess.run([sys.executable, str(HERE / PARTS[part])], check=False).returncode:
            failed.append(part)
    quality_table.main()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the page tells what was there before")


if __name__ == "__main__":
    main()
