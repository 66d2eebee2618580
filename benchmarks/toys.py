"""Random models, scripted vocabularies and ensembles of both, for benchmarks.

Nothing is trained and nothing is read: a vocabulary of any size is a byte-level BPE whose merges
are drawn, and two of them share most of their tokens, as real ones do. Speed is all that can be
looked at::

    from toys import ensemble_of, llama, opened, vocabulary

    ensemble = ensemble_of(
        {"a": (llama(16_000), vocabulary(16_000)), "b": (llama(12_000), vocabulary(12_000, 1))},
        fusion="unite",
    )
    decoding = opened(ensemble, tokens=2048, max_tokens=100)   # prompts of so many random ids
    decoding.step()                                            # reads the prompt, decodes one key
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from langchain_ensemble.decoding.engine import Decoding
from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.fusion.base import Fusion
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.registry import Lease
from langchain_ensemble.members.weights import Weights
from langchain_ensemble.params import EnsembleParams, Member, RequestParams
from langchain_ensemble.requests import plain_task

SHARED_MERGES = 0.75
"""Share of a scripted vocabulary that every other scripted vocabulary has as well."""


def model(
    config: Mapping[str, Any], *, device: str = "cpu", dtype: Any = None, seed: int = 0
) -> Any:
    """Make a model of random weights, on its device.

    Args:
        config: A transformers config as a dictionary, with ``model_type``.
        device: Where the weights are made.
        dtype: Of the weights; default float32.
        seed: Of the weights.

    Returns:
        The model, in eval mode.
    """
    torch.manual_seed(seed)
    made = AutoConfig.for_model(**config)
    with torch.device(device):
        built = AutoModelForCausalLM.from_config(made, dtype=dtype or torch.float32)
    built.generation_config.eos_token_id = None
    return built.eval()


def llama(vocab: int, hidden: int = 64, layers: int = 8, *, seed: int = 0, **more: Any) -> Any:
    """Make a small Llama of random weights.

    Args:
        vocab: Columns of its logits.
        hidden: Width; heads are 16 wide up to 128, 64 wide above.
        layers: Layers.
        seed: Of the weights.
        more: Further settings of its config.

    Returns:
        The model, in eval mode.
    """
    heads = max(hidden // (16 if hidden <= 128 else 64), 1)
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 32_768,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return model({**config, **more}, seed=seed)


def vocabulary(size: int, seed: int = 0) -> Any:
    """Make a byte-level BPE of so many tokens; the first three quarters are the same for any seed.

    Args:
        size: Tokens, END included; at least 257.
        seed: Of the last quarter of its merges.

    Returns:
        A transformers tokenizer; its first id is END.
    """
    end, letters = "<|end|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {end: 0, **{letter: i + 1 for i, letter in enumerate(letters)}}
    usual = ["Ġ", *"etaoinshrdlucmfwypvbgkqjxz"]
    words, merges = list(usual), []
    common, drawn = random.Random(0), random.Random(seed + 1)
    while len(ids) < size:
        source = common if len(ids) < SHARED_MERGES * size else drawn
        left = words[int(len(words) * source.random() ** 2)]  # early pieces merge most
        right = words[int(len(words) * source.random() ** 2)]
        joined = left + right
        if joined in ids or right.startswith("Ġ") or len(joined) > 12:
            continue
        ids[joined] = len(ids)
        words.append(joined)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def real_vocabulary(shared: Path, name: str, size: int, seed: int = 0) -> Any:
    """Read a real tokenizer where the shared data has it, else script one of its size.

    Args:
        shared: Folder of the shared data; it need not exist.
        name: The tokenizer's folder in it.
        size: Tokens of the scripted one.
        seed: Of the scripted one.

    Returns:
        A transformers tokenizer.
    """
    folder = shared / "tokenizers" / name
    return AutoTokenizer.from_pretrained(folder) if folder.is_dir() else vocabulary(size, seed)


def ensemble_of(
    members: Mapping[str, tuple[Any, Any]],
    fusion: str | dict[str, Any] | Fusion,
    *,
    forward: str | None = None,
    **params: Any,
) -> Ensemble:
    """Make an ensemble of models and tokenizers that are in memory.

    Args:
        members: Name to (model, tokenizer); the first is main. Members of one model share it.
        fusion: As in the parameters, or a fusion object.
        forward: How all forwards run; None: the default of their device.
        params: Further parameters of the ensemble.

    Returns:
        The ensemble, built.
    """
    named = fusion if isinstance(fusion, (str, dict)) else "unite"
    made = Ensemble(
        EnsembleParams(
            members=tuple(Member("memory", name=name) for name in members), fusion=named, **params
        ),
        fusion=None if isinstance(fusion, (str, dict)) else fusion,
    )
    weights: dict[int, Weights] = {}
    for name, (module, _) in members.items():
        if id(module) not in weights:
            weights[id(module)] = Weights.of(module, f"benchmark:{id(module)}", name)
    loaded = [
        HFMember(name, Lease.private(weights[id(module)]), tokenizer, forward=forward)
        for name, (module, tokenizer) in members.items()
    ]
    made._built = made._build(loaded, None)
    return made


def opened(
    ensemble: Ensemble, tokens: int, rows: int = 1, *, seed: int = 0, **request: Any
) -> Decoding:
    """Open a request whose prompts have exactly so many random ids for every member.

    Args:
        ensemble: A built ensemble.
        tokens: Ids of each prompt.
        rows: Prompts.
        seed: Of the ids.
        request: Settings of the request.

    Returns:
        The request; its first step reads the prompts.
    """
    built = ensemble._ready()
    task = plain_task(built, ensemble.params, RequestParams(**request))
    draw = random.Random(seed)
    prompts = []
    for _ in range(rows):
        of_row = []
        for voice in task.voices:
            count = min(len(voice.member.tokenizer), voice.member.logits_width)
            ids = (draw.randrange(300, count) for _ in range(tokens))  # past END and the bytes
            of_row.append(MemberPrompt(tuple(ids)))
        prompts.append(of_row)
    return ensemble._engine.admit(replace(task, prompts=prompts))


def drafts_of(decoding: Decoding) -> tuple[int, int]:
    """How many keys a request has drafted so far, and how many of them were chosen.

    Args:
        decoding: The request.

    Returns:
        Both counts.
    """
    ahead = decoding._loop._ahead
    counts = [each for each in (ahead, ahead._drafts) if each is not None]
    return sum(c.drafted for c in counts), sum(c.accepted for c in counts)
