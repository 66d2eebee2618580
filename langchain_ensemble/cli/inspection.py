"""What can be known about one member without its weights: config, tokenizer, card, sizes.

The model is built on torch's meta device from its config: every shape is real, nothing is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import yaml
from transformers import AutoModelForCausalLM

from langchain_ensemble.errors import MemberError
from langchain_ensemble.members.files import StoredTensor, memory_needed
from langchain_ensemble.members.fit import KNOWN, context_of, logits_width, mask_plan, rope_switch
from langchain_ensemble.members.huggingface import end_ids
from langchain_ensemble.members.loading import load_config, load_tokenizer
from langchain_ensemble.members.quantization import quantization_config
from langchain_ensemble.members.sources import Source, locate, weight_names
from langchain_ensemble.params import Member
from langchain_ensemble.vocab.vocabulary import Vocabulary

SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "num_beams", "penalty_alpha",
    "length_penalty", "bad_words_ids", "suppress_tokens",
)  # fmt: skip
"""Values of a generation config that would change what is said."""

PLANS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "8-bit": (torch.bfloat16, "bnb-8bit"),
    "4-bit": (torch.bfloat16, "bnb-4bit"),
}
"""Memory plans: dtype of what is not quantised, and the quantisation; float16 is as bfloat16."""

KV_TOKENS = 1000
"""A cache's size is told for so many tokens."""

_UNREADABLE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""How a config, or a model on the meta device, says that it does not do what is asked."""


@dataclass(frozen=True)
class Inspected:
    """One member, without weights.

    Attributes:
        name: Its name in the ensemble.
        model: Hub id or folder.
        commit: Hub commit; None for a folder.
        model_type: Architecture family.
        stored: Dtype that the config names.
        parameters: Weights in all, tied ones once.
        embedding: Rows and columns of the input embeddings.
        context: Positions, None when unknown.
        vocabulary: Its tokens.
        tokens: Spelling of control tokens by id.
        plain_ends: End ids that the tokenizer has as ordinary text, so that text would end.
        chat_template: Whether its view has one.
        licence: As the model card names it, None where it does not.
        generation: Sampling values of its generation config; they are not applied.
        rollback: How its cache is rolled back; None: found out when it is loaded.
        memory: Plan → bytes of the weights and of the cache of :data:`KV_TOKENS` tokens.
        weight_files: Bytes of the files that would be read; None: there are none.
    """

    name: str
    model: str
    commit: str | None
    model_type: str
    stored: str | None
    parameters: int
    embedding: tuple[int, int]
    context: int | None
    vocabulary: Vocabulary
    tokens: Mapping[int, str]
    plain_ends: tuple[int, ...]
    chat_template: bool
    licence: str | None
    generation: Mapping[str, Any]
    rollback: str | None
    memory: Mapping[str, Mapping[str, int | None]]
    weight_files: int | None

    @property
    def spells_everything(self) -> bool:
        """Whether every character has a spelling, byte by byte if need be."""
        used = [b for b in range(0xF5) if b not in (0xC0, 0xC1)]
        return all(bytes([b]) in self.vocabulary.key_of for b in used)


def inspect(member: Member) -> Inspected:
    """Look at a member; on the Hub, fetch its small files only.

    Args:
        member: Settings, with a name.

    Raises:
        ConfigError: Its quantisation is unknown or its package is missing.
        MemberError: It cannot be found, or is no causal language model.
        VocabularyError: Its tokenizer cannot be turned into bytes, or is not the model's.
    """
    quantization_config(str(member.name), member.quantization)  # refuses what cannot be loaded
    source = locate(member)
    config = load_config(member, source)
    tokenizer = load_tokenizer(member, source)
    module = _skeleton(member, config)
    generation = _json(source.path / "generation_config.json")
    holder = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=generation.get("eos_token_id")),
        config=config,
    )
    template = tokenizer.chat_template
    template = template if isinstance(template, str) else (template or {}).get("default")
    vocabulary = Vocabulary(
        tokenizer,
        width=logits_width(module),
        end_ids=end_ids(tokenizer, holder),
        chat_template=template,
    )
    control = [i for i, role in enumerate(vocabulary.token_roles) if role is not None]
    table = cast("torch.Tensor", module.get_input_embeddings().weight)
    tensors = [StoredTensor(n, "F32", tuple(p.shape)) for n, p in module.named_parameters()]
    stored = getattr(config, "dtype", None)
    return Inspected(
        name=str(member.name),
        model=member.model,
        commit=source.commit,
        model_type=str(config.model_type),
        stored=None if stored is None else str(stored).removeprefix("torch."),
        parameters=sum(tensor.numel for tensor in tensors),
        embedding=(int(table.shape[0]), int(table.shape[1])),
        context=context_of(config),
        vocabulary=vocabulary,
        tokens=dict(zip(control, tokenizer.convert_ids_to_tokens(control), strict=True)),
        plain_ends=tuple(i for i in vocabulary.end_ids if i not in tokenizer.added_tokens_decoder),
        chat_template=bool(template),
        licence=licence(source.path),
        generation={name: generation[name] for name in SAMPLING if name in generation},
        rollback=_rollback(config, member.attn_implementation or "sdpa"),
        memory=_memory(module, tensors),
        weight_files=_weight_files(member, source),
    )


def _skeleton(member: Member, config: Any) -> Any:
    """The model without weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=bool(member.trust_remote_code)
            ).eval()
    except _UNREADABLE as error:
        raise MemberError(
            f"member {member.name!r}: {member.model!r} (model_type {config.model_type!r}) is no "
            f"causal language model of this transformers: {str(error).splitlines()[0]}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise MemberError(f"{str(path)!r} is not JSON: {error}") from error


def _memory(module: Any, tensors: list[StoredTensor]) -> dict[str, dict[str, int | None]]:
    """Bytes of weights and cache for every plan."""
    numbers = cache_numbers(module)
    return {
        plan: {
            "weights": memory_needed(tensors, dtype, quantization),
            "kv_cache": None if numbers is None else numbers * KV_TOKENS * dtype.itemsize,
        }
        for plan, (dtype, quantization) in PLANS.items()
    }


def cache_numbers(module: Any) -> int | None:
    """Numbers that a model's cache holds for one token; None where it is no such cache.

    Args:
        module: A model on the meta device, which is asked.
    """
    try:
        ids = torch.zeros((1, 1), dtype=torch.long, device="meta")
        layers = module(input_ids=ids, use_cache=True).past_key_values.layers
        return sum(int(layer.keys.numel() + layer.values.numel()) for layer in layers)
    except _UNREADABLE:
        return None


def _rollback(config: Any, attention: str) -> str | None:
    """How the cache is rolled back, where the family is known."""
    if rope_switch(config) is not None:
        return "replayed"
    known = config.model_type in KNOWN
    plans = [mask_plan(config, attention, one_mask) for one_mask in (False, True)]
    return "exact" if known and any(plan is not None for plan in plans) else None


def _weight_files(member: Member, source: Source) -> int | None:
    """Bytes of the weight files.

    Raises:
        MemberError: There are files, but none that would be read.
    """
    if not source.sizes:
        return None
    return sum(source.sizes[name] for name in weight_names(member, source))


def licence(folder: Path) -> str | None:
    """The licence that the model card (README.md) names in its head.

    Args:
        folder: The model's folder.

    Returns:
        Its name; None without a card, or where the card names none.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        head = yaml.safe_load(text[3:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    if not isinstance(head, dict) or not head.get("license"):
        return None
    name = head["license"]
    named = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    return f"{named} ({head['license_name']})" if head.get("license_name") else named
