"""What can be said of a member before its weights are read: for ``check`` and for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.devices import DTYPES
from langchain_ensemble.members.files import StoredTensor, memory_needed, read_header, stored_dtype
from langchain_ensemble.members.fit import KNOWN, context_of, rope_switch, text_config
from langchain_ensemble.members.hub import bars, explained
from langchain_ensemble.members.loading import load_config, load_tokenizer, with_defaults
from langchain_ensemble.members.sources import Source, locate
from langchain_ensemble.members.weights import config_dtype
from langchain_ensemble.params import Member, derive_name

SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
    "no_repeat_ngram_size", "max_new_tokens", "max_length",
)  # fmt: skip
"""Settings of a ``generation_config`` that are shown and not applied."""


@dataclass(frozen=True)
class MemberInfo:
    """One member, without its weights.

    Attributes:
        name: Name in the ensemble.
        model: Hub id or folder.
        commit: Hub commit, None for a folder.
        architecture: Class that transformers would build, None if it has none for this config.
        tokenizer: The tokenizer object.
        logits_width: Columns of the logits by the config.
        embedding_width: Width of the input embeddings.
        context: Positions, None when unknown.
        end_ids: Ids that end a turn, by tokenizer, generation config and config.
        chat_template: Whether the member has one.
        licence: Of the model card, None when it names none.
        parameters: Number of parameters in the files, None when it cannot be known.
        memory: Dtype or quantisation → bytes of the weights in memory.
        kv_bytes_per_token: Dtype → bytes of the KV cache a token and row; empty when unknown.
        safetensors: Whether there are safetensors weights.
        stored: Dtype in the files, for example ``"bfloat16"``.
        quantization: Method of a checkpoint that is already quantised, or the setting.
        sampling: Sampling values of its ``generation_config``; they are not applied.
        rollback: ``"yes"`` (tested family), ``"no"`` (no causal language model) or ``"unknown"``
            (found out at load).
    """

    name: str
    model: str
    commit: str | None
    architecture: str | None
    tokenizer: Any = field(repr=False)
    logits_width: int
    embedding_width: int
    context: int | None
    end_ids: tuple[int, ...]
    chat_template: bool
    licence: str | None
    parameters: int | None
    memory: dict[str, int]
    kv_bytes_per_token: dict[str, int]
    safetensors: bool
    stored: str | None
    quantization: str | None
    sampling: dict[str, Any]
    rollback: str


def inspect_member(member: Member, **defaults: Any) -> MemberInfo:
    """Read everything about a member but its weights.

    Args:
        member: Settings of the member.
        defaults: Settings for what it leaves open, as for ``load_member``.

    Raises:
        ConfigError: Settings that cannot be.
        MemberError: Files or access; says which and what to do.
    """
    member = with_defaults(member, defaults)
    member = member.model_copy(update={"name": member.name or derive_name(member.model)})
    source = locate(member)
    config = load_config(member, source)
    tokenizer = load_tokenizer(member, source)
    tensors = _tensors(member, source)
    inner = text_config(config)
    generation = _generation(source.path)
    stored = stored_dtype(tensors) or config_dtype(config)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return MemberInfo(
        name=str(member.name),
        model=member.model,
        commit=source.commit,
        architecture=None if causal is None else causal.__name__,
        tokenizer=tokenizer,
        logits_width=int(inner.vocab_size),
        embedding_width=int(inner.hidden_size),
        context=context_of(config),
        end_ids=_end_ids(tokenizer, generation, inner),
        chat_template=bool(tokenizer.chat_template),
        licence=_licence(source.path),
        parameters=sum(t.numel for t in tensors) if tensors else None,
        memory=_memory(tensors),
        kv_bytes_per_token=_kv_bytes(inner),
        safetensors=any(name.endswith(".safetensors") for name in source.sizes),
        stored=None if stored is None else str(stored).removeprefix("torch."),
        quantization=_quantization(config) or member.quantization,
        sampling={k: generation[k] for k in SAMPLING if generation.get(k) is not None},
        rollback=_rollback(config, causal),
    )


def _tensors(member: Member, source: Source) -> list[StoredTensor]:
    """Names, dtypes and shapes of all tensors: from files here, else from headers on the Hub."""
    names = sorted(name for name in source.sizes if name.endswith(".safetensors"))
    here = [source.path / name for name in names]
    if all(path.is_file() for path in here):
        return [t for path in here for t in read_header(str(member.name), path)]
    token = member.token.get_secret_value() if member.token is not None else None
    try:
        with bars(never=True), explained(member):
            found = HfApi().get_safetensors_metadata(
                member.model, revision=source.commit, token=token
            )
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        return []
    return [
        StoredTensor(name, str(info.dtype), tuple(info.shape))
        for file in found.files_metadata.values()
        for name, info in file.tensors.items()
    ]


def _memory(tensors: list[StoredTensor]) -> dict[str, int]:
    """Bytes in memory by dtype, and by the quantisations that this package names."""
    if not tensors:
        return {}
    plain = {name: memory_needed(tensors, dtype, None) for name, dtype in DTYPES.items()}
    for quantization in ("bnb-8bit", "bnb-4bit"):
        plain[quantization] = memory_needed(tensors, torch.bfloat16, quantization)
    return plain


def _kv_bytes(inner: Any) -> dict[str, int]:
    """Bytes of keys and values a token and row, by dtype."""
    layers = getattr(inner, "num_hidden_layers", None)
    heads = getattr(inner, "num_attention_heads", None)
    if layers is None or heads is None:
        return {}
    if hasattr(inner, "qk_nope_head_dim") and hasattr(inner, "v_head_dim"):
        width = heads * (inner.qk_nope_head_dim + inner.qk_rope_head_dim + inner.v_head_dim)
    else:
        size = getattr(inner, "head_dim", None) or inner.hidden_size // heads
        width = 2 * size * (getattr(inner, "num_key_value_heads", None) or heads)
    return {name: layers * width * dtype.itemsize for name, dtype in DTYPES.items()}


def _generation(path: Path) -> dict[str, Any]:
    """A model's ``generation_config.json``; empty when there is none."""
    if not (path / "generation_config.json").is_file():
        return {}
    try:
        return dict(GenerationConfig.from_pretrained(path).to_diff_dict())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path / 'generation_config.json'} cannot be read: {error}") from error


def _end_ids(tokenizer: Any, generation: dict[str, Any], inner: Any) -> tuple[int, ...]:
    """Ids that end a turn, in the order in which a loaded member lists them."""
    found: list[int] = []
    config_end = getattr(inner, "eos_token_id", None)
    for value in (tokenizer.eos_token_id, generation.get("eos_token_id"), config_end):
        listed = value if isinstance(value, (list, tuple)) else [value]
        found += [int(i) for i in listed if i is not None and int(i) not in found]
    return tuple(found)


def _licence(path: Path) -> str | None:
    """Licence of the model card."""
    card = path / "README.md"
    data = metadata_load(card) if card.is_file() else None
    if not data:
        return None
    name = data.get("license_name") if data.get("license") == "other" else data.get("license")
    return None if name is None else str(name)


def _quantization(config: Any) -> str | None:
    """Quantisation method of a checkpoint."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _rollback(config: Any, causal: Any) -> str:
    """Whether the cache can be rolled back, as far as is known without weights."""
    if causal is None:
        return "no"
    return "yes" if config.model_type in KNOWN and rope_switch(config) is None else "unknown"
