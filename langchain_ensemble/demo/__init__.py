"""Two small members that ship with the package, so that everything can be tried offline.

``stories`` (Llama architecture, SentencePiece-like BPE) tells children's stories; ``facts``
(GPT-NeoX architecture, byte-level BPE) knows capitals, neighbours and highest points. About two
million parameters each, trained from scratch by ``tools/train_demo_members.py``. A toy: it shows
the whole path, and is no good writer. This file knows where they are and what to ask them, and
imports nothing.
"""

from __future__ import annotations

from pathlib import Path

PROMPTS = {
    "a story": "Once upon a time, there was a little fox",
    "a country": "Question: What is the capital of France?\nAnswer:",
    "both": "One day, Lily and Lily's mom went to Italy. They wanted to see the capital,",
}
"""What ``make demo`` asks, by what it shows."""


def members() -> dict[str, str]:
    """Give the folders of the two members that ship with the package.

    Returns:
        Name → folder; ``facts`` is first, and so the main member.
    """
    here = Path(__file__).resolve().parent
    return {name: str(here / name) for name in ("facts", "stories")}
