"""A chat ensemble of two pico members for agents: long contexts, two templates, chosen words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import chat_pico

END = "<|im_end|>"
_QWEN = chat_pico.QWEN.replace(
    "or [] %}<tool_call>", "or [] %}{{ '' if loop.first else '\n' }}<tool_call>"
)
"""With a line between two calls, as Hermes and Qwen write several."""


def call(tool: str, **arguments: Any) -> str:
    """One call as the main member ``qwen`` writes it."""
    whole = {"name": tool, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(whole, ensure_ascii=False)}\n</tool_call>"


def calls(*several: str) -> str:
    """Some calls of one turn."""
    return "\n".join(several) + END


def pair(folder: Path, positions: int = 4096) -> Mapping[str, str]:
    """Write two chat members of different tokenizers and templates.

    Args:
        folder: Where to.
        positions: Of each member.

    Returns:
        Name → folder; ``qwen`` writes tool calls with a control token, ``zephyr`` knows no tools.
    """
    made = {
        "qwen": chat_pico.build("qwen2", folder / "q", _QWEN, chat_pico.QWEN_MARKERS),
        "zephyr": chat_pico.build(
            "llama", folder / "z", chat_pico.ZEPHYR, chat_pico.ZEPHYR_MARKERS
        ),
    }
    for path in made.values():
        config = json.loads((path / "config.json").read_text())
        config["max_position_embeddings"] = positions
        (path / "config.json").write_text(json.dumps(config))
    _end_turns(made["qwen"])
    return {name: str(path) for name, path in made.items()}


def _end_turns(folder: Path) -> None:
    """Let the model end at its template's END, as the configs of instruct models say."""
    names = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ends = [token["id"] for token in names if token["content"] in ("<|endoftext|>", END)]
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, "eos_token_id": ends}))
