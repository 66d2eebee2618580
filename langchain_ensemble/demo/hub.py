"""Two small instruct models of the Hub in the place of the embedded toys, for who has a network.

Their makers, tokenizers and chat templates differ; both are under Apache-2.0. About 1.7 GB are
downloaded once, into the cache that Hugging Face's other tools use too.
"""

from __future__ import annotations

MEMBERS = {
    "qwen": "Qwen/Qwen2.5-0.5B-Instruct",
    "smollm": "HuggingFaceTB/SmolLM2-360M-Instruct",
}
"""Name → Hub id; ``qwen`` is first, and so the main member: its template knows tools."""
