"""Pairs of real shapes with random weights, and answers whose drafts are accepted as a script says.

A *ring* of words that every member spells with one token is written into the models: after each
word all of them are almost sure of the next, except where the script lets one of two members prefer
another word (0.62 against 0.38). The mean then follows the member that is sure, so a draft of the
other is refused there. Every forward, fusion and verification is real; only what the last layer
says is overwritten, by one scatter on the device.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import SHARED
from toys import ensemble_of, model, real_vocabulary, vocabulary

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.params import RequestParams
from langchain_ensemble.requests import plain_task

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        **_LLAMA, "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584,
        "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "Llama-2-13B": {
        **_LLAMA, "vocab_size": 32_000, "hidden_size": 5120, "intermediate_size": 13_824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40,
        "max_position_embeddings": 16_384,
    },
    "Mistral-7B": {
        "model_type": "mistral", "vocab_size": 32_768, "hidden_size": 4096,
        "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32_768, "sliding_window": None,
    },
}  # fmt: skip
"""Shapes from the models' published configs."""

TOKENIZERS = {
    "Llama-3.1-8B": ("llama-3", 128_000),
    "Qwen2.5-7B": ("qwen2.5", 151_643),
    "Llama-2-13B": ("llama-2", 32_000),
    "Mistral-7B": ("mistral-v3", 32_768),
}
"""Folder of the shared data and, where it is absent, the size of a scripted vocabulary."""

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL_VOCABULARY = 2_000
WORDS = 400
WORD = re.compile(rb" [a-z]{2,12}")
SURE, FIRST, SECOND = 50.0, 50.0, 49.5


@dataclass(frozen=True)
class Ring:
    """Words that every member spells with one token, in a circle.

    Attributes:
        ids: [member][word].
    """

    ids: tuple[tuple[int, ...], ...]

    def prompt(self, member: int, start: int, tokens: int) -> MemberPrompt:
        """A prompt of so many words, for one member."""
        ring = self.ids[member]
        around = itertools.islice(itertools.cycle(ring), start, start + tokens)
        return MemberPrompt(tuple(around))


def make(name: str, device: str, *, small: bool, seed: int = 0) -> tuple[Any, Any]:
    """Make one member's model and tokenizer.

    Args:
        name: Of :data:`CONFIGS`.
        device: Where its weights are made.
        small: Whether a few thousand weights are enough.
        seed: Of the weights.

    Returns:
        The model (bfloat16 on a GPU), and the tokenizer.
    """
    folder, size = TOKENIZERS[name]
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = {**CONFIGS[name], **none}
    number = list(CONFIGS).index(name)
    if small:
        size = SMALL_VOCABULARY + 100 * number
        config |= {**SMALL, "vocab_size": size + 8}
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    named = vocabulary(size, number) if small else real_vocabulary(SHARED, folder, size, number)
    return model(config, device=device, dtype=dtype, seed=seed), named


def ring_of(ensemble: Ensemble) -> Ring:
    """Find words that all members of an ensemble spell with one token."""
    vocabularies = ensemble._ready().vocabularies
    found: list[list[int]] = []
    for data in vocabularies[0].token_bytes:
        if data is None or not WORD.fullmatch(data):
            continue
        spelled = [v.encode(data.decode()).ids for v in vocabularies]
        if all(len(ids) == 1 for ids in spelled):
            found.append([ids[0] for ids in spelled])
        if len(found) == WORDS:
            break
    random.Random(0).shuffle(found)
    return Ring(tuple(zip(*found, strict=True)))


def script(models: Sequence[Any], ring: Ring, acceptance: float) -> None:
    """Write a ring into models; with two, drafts are accepted with about this probability.

    Args:
        models: One a member, main first; two views may share one.
        ring: The words.
        acceptance: Share of words that a member which drafts alternately proposes as the mean has.
    """
    count = len(ring.ids[0])
    draw = random.Random(1)
    doubtful = [draw.random() < 2 * (1 - acceptance) for _ in range(count)]
    doubter = [draw.randrange(2) for _ in range(count)]
    seen: set[int] = set()
    for member, (module, ids) in enumerate(zip(models, ring.ids, strict=True)):
        if id(module) in seen:
            continue
        seen.add(id(module))
        device = module.get_input_embeddings().weight.device
        width = module.get_output_embeddings().weight.shape[0]
        first = torch.full((width,), ids[0])
        second = torch.full((width,), ids[1])
        low = torch.full((width,), -SURE)
        for k, token in enumerate(ids):
            right, wrong = ids[(k + 1) % count], ids[(k + 7) % count]
            doubts = doubtful[k] and doubter[k] == member and len(models) > 1
            first[token], second[token] = (wrong, right) if doubts else (right, wrong)
            low[token] = SECOND if doubts else -SURE
        _overwrite(module, first.to(device), second.to(device), low.to(device))


def _overwrite(module: Any, first: torch.Tensor, second: torch.Tensor, low: torch.Tensor) -> None:
    """Let a model's forward say what its tables say: by its class, so that a compiler sees it."""
    cls = type(module)
    plain = getattr(cls, "unscripted", cls)

    @functools.wraps(plain.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain.forward(self, *args, **kwargs)
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        logits = output.logits
        kept = kwargs.get("logits_to_keep", 0)
        if isinstance(kept, torch.Tensor):
            ids = ids[:, kept]
        ids = ids[:, ids.shape[1] - logits.shape[1] :]
        strength = low[ids][..., None].to(logits.dtype)
        logits.scatter_(2, second[ids][..., None], strength)
        logits.scatter_(2, first[ids][..., None], torch.full_like(strength, FIRST))
        return output

    module.__class__ = type(cls.__name__, (plain,), {"forward": forward, "unscripted": plain})


def opened_on(
    ensemble: Ensemble, ring: Ring, tokens: int, rows: int = 1, **request: Any
) -> Decoding:
    """Open a request over prompts of so many words of a ring.

    Args:
        ensemble: Whose members the ring was written into.
        ring: The words.
        tokens: Tokens of each prompt, for every member.
        rows: Prompts; each begins at another word.
        request: Settings of the request.

    Returns:
        The request; its first step reads the prompts.
    """
    task = plain_task(ensemble._ready(), ensemble.params, RequestParams(**request))
    prompts = [
        [ring.prompt(place, 13 * row, tokens) for place in task.places] for row in range(rows)
    ]
    return ensemble._engine.admit(replace(task, prompts=prompts))


def scripted(
    members: dict[str, tuple[Any, Any]], fusion: str, acceptance: float = 0.7, **params: Any
) -> tuple[Ensemble, Ring]:
    """Make an ensemble with a ring written into its members.

    Args:
        members: Name to (model, tokenizer), main first.
        fusion: A fusion's name.
        acceptance: As in :func:`script`.
        params: Further parameters of the ensemble.

    Returns:
        The ensemble and its ring.
    """
    ensemble = ensemble_of(members, fusion, **params)
    ring = ring_of(ensemble)
    script([made for made, _ in members.values()], ring, acceptance)
    return ensemble, ring
