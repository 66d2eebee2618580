"""Pico models that have a chat template, room for a conversation, and markers of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import pico

QWEN = (
    "{%- if tools %}<|im_start|>system\nTools:\n<tools>"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    'Call: <tool_call>\n{"name": .., "arguments": {..}}\n</tool_call><|im_end|>\n{% endif %}'
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{%- endif %}{% endif %}"
)
QWEN_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ZEPHYR_MARKERS = ("<|user|>", "<|assistant|>", "<|system|>")


def build(
    kind: str, folder: Path, template: str, markers: tuple[str, ...], *, seed: int = 0
) -> Path:
    """Write one pico chat model into ``folder``.

    Args:
        kind: A name of ``pico.KINDS``.
        folder: Where to write.
        template: Its chat template.
        markers: Control tokens to add.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    pico.build(kind, folder, seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(m, special=True) for m in markers]}
    )
    tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    model.config.max_position_embeddings = 1024
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
