"""UniTE as its authors' scripts compute it, mistakes included: only to be compared with golden
numbers.

Keys are token *strings*; see the module docstring of ``langchain_ensemble.fusion.unite`` for what
each of these rules gets wrong and what ours does instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

SPACE_NAMES = ("llama2", "mistral", "deepseek", "openchat")
"""Models whose keys are looked up with ``▁``; their names decide, not their tokenizers."""

OWN, HIT, FIRST_PIECE, DUPLICATE = 1, 2, 3, 4


@dataclass
class Updated:
    """One model's row over the union: rule, id and logit of each key, in its own order."""

    keys: list[str]
    rules: list[int]
    ids: list[int]
    logits: list[float]

    def probs(self) -> Tensor:
        """Softmax over the union's logits."""
        return torch.softmax(torch.tensor(self.logits), -1)


def key_of(tokenizer: Tokenizer, token_id: int) -> str:
    """The reference's key of an id."""
    token = tokenizer.id_to_token(token_id)
    return token.replace("▁", "Ġ").replace("<0x0A>", "/n").replace("Ċ", "/n")


def top_keys(tokenizer: Tokenizer, ids: list[int], logits: Tensor) -> dict[str, tuple[float, int]]:
    """Top-k as a dictionary; equal keys overwrite each other."""
    return {key_of(tokenizer, i): (float(logits[i]), i) for i in ids}


def update(
    union: list[str],
    top: dict[str, tuple[float, int]],
    tokenizer: Tokenizer,
    logits: Tensor,
    name: str,
    mmlu: bool = False,
) -> Updated:
    """Score every key of the union with one model (rules 1-4)."""
    spaced = name in SPACE_NAMES
    table = dict(top)
    rules = dict.fromkeys(table, OWN)
    for key in union:
        if key in table:
            continue
        text = key.replace("Ġ", "▁") if spaced and not mmlu else key
        token_id = tokenizer.token_to_id(text)
        rule = HIT
        if not token_id:  # unknown, or the id 0, which is taken for unknown
            rule = FIRST_PIECE
            token_id = tokenizer.encode(text, add_special_tokens=False).ids[0]
        taken = any(token_id == known for _, known in table.values())
        if taken and not spaced and not mmlu:
            rules[key], table[key] = DUPLICATE, (0.0, token_id)  # the *logit* 0
        else:
            rules[key], table[key] = rule, (float(logits[token_id]), token_id)
    keys = list(table)
    return Updated(
        keys, [rules[k] for k in keys], [table[k][1] for k in keys], [table[k][0] for k in keys]
    )


def fuse(updated: list[Updated]) -> tuple[list[str], Tensor]:
    """Mean of the models' probabilities, in the first model's key order."""
    order = updated[0].keys
    total = torch.zeros(len(order))
    for one in updated:
        probs = dict(zip(one.keys, one.probs().tolist(), strict=True))
        total += torch.tensor([probs[key] for key in order])
    return order, total / len(updated)
