"""What can be said of a member before its weights are read: for ``check`` and for people.

The model is built on torch's meta device from its config: every shape is real, nothing is stored.
Headers of weight files are read, on the Hub by range requests. Must not know how tokens become
bytes, nor how anything looks on a page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from transformers import AutoModelForCausalLM

from langchain_ensemble.errors import MemberError
from langchain_ensemble.members.devices import DTYPES
from langchain_ensemble.members.files import StoredTensor, memory_needed, read_header, stored_dtype
from langchain_ensemble.members.fit import KNOWN, context_of, logits_width, mask_plan, rope_switch
from langchain_ensemble.members.hub import bars, explained, first_line, title
from langchain_ensemble.members.huggingface import end_ids
from langchain_ensemble.members.loading import load_config, load_tokenizer, with_defaults
from langchain_ensemble.members.quantization import quantization_config
from langchain_ensemble.members.sources import Source, fetch_adapter, locate, weight_names
from langchain_ensemble.members.weights import config_dtype
from langchain_ensemble.params import Member, derive_name

SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "num_beams", "penalty_alpha",
    "length_penalty", "bad_words_ids", "suppress_tokens", "max_new_tokens", "max_length",
)  # fmt: skip
"""Values of a ``generation_config`` that would change what is said; shown and not applied."""

_UNREADABLE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""How a config, or a model on the meta device, says that it does not do what is asked."""


@dataclass(frozen=True)
class MemberInfo:
    """One member, without its weights.

    Attributes:
        name: Name in the ensemble.
        model: Hub id or folder.
        commit: Hub commit, None for a folder.
        model_type: Architecture family, as the config names it.
        architecture: Class that transformers would build.
        tokenizer: The tokenizer object.
        template: Chat template of the member's view, None for a base model.
        logits_width: Columns of the logits.
        embedding_rows: Rows of the input embeddings.
        embedding_width: Columns of the input embeddings.
        context: Positions, None when unknown.
        end_ids: Ids that end a turn, by tokenizer, generation config and config.
        licence: Of the model card, None when it names none.
        parameters: Numbers in the model's weights, tied ones once, an adapter's not counted.
        memory: Dtype or quantisation → bytes of the weights in memory. A checkpoint that is
            already quantised has no other quantisation, and is measured by its files: empty
            where their headers cannot be read.
        kv_bytes_per_token: Dtype → bytes of the KV cache a token and row; empty when unknown.
        weight_bytes: Size of the weight files that would be read, None where there are none yet.
        safetensors: Whether there are safetensors weights.
        stored: Dtype of the checkpoint as loading takes it: the config's, else the files', for
            example ``"bfloat16"``.
        quantization: Method of a checkpoint that is already quantised, or the setting.
        adapter: PEFT adapter, Hub id or folder.
        adapter_bytes: Size of the adapter's tensors, None without one.
        sampling: Sampling values of its ``generation_config``; they are not applied.
        rollback: How its cache is rolled back: ``"exact"`` (tested family), ``"replayed"`` (rows
            one by one) or None (found out at load).
    """

    name: str
    model: str
    commit: str | None
    model_type: str
    architecture: str
    tokenizer: Any = field(repr=False)
    template: str | None = field(repr=False)
    logits_width: int
    embedding_rows: int
    embedding_width: int
    context: int | None
    end_ids: tuple[int, ...]
    licence: str | None
    parameters: int
    memory: dict[str, int]
    kv_bytes_per_token: dict[str, int]
    weight_bytes: int | None
    safetensors: bool
    stored: str | None
    quantization: str | None
    adapter: str | None
    adapter_bytes: int | None
    sampling: dict[str, Any]
    rollback: Literal["exact", "replayed"] | None

    @property
    def chat_template(self) -> bool:
        """Whether the member has one."""
        return self.template is not None


def inspect_member(member: Member, **defaults: Any) -> MemberInfo:
    """Read everything about a member but its weights.

    Args:
        member: Settings of the member.
        defaults: Settings for what it leaves open, as for ``load_member``.

    Raises:
        ConfigError: Settings that cannot be.
        MemberError: Files, access, or no causal language model; says which and what to do.
    """
    member = with_defaults(member, defaults)
    member = member.model_copy(update={"name": member.name or derive_name(member.model)})
    quantization_config(str(member.name), member.quantization)  # refuses what cannot be loaded
    source = locate(member)
    config = load_config(member, source)
    tokenizer = load_tokenizer(member, source)
    names = weight_names(member, source) if source.sizes else []
    headers = _headers(member, source, names)
    stored = config_dtype(config) or stored_dtype(headers)
    quantized = _quantization(config)
    module = _skeleton(member, config)
    table = cast(torch.Tensor, module.get_input_embeddings().weight)
    tensors = [StoredTensor(n, "F32", tuple(p.shape)) for n, p in module.named_parameters()]
    generation = _json(member, source.path / "generation_config.json")
    adapter = _adapter(member)
    return MemberInfo(
        name=str(member.name),
        model=member.model,
        commit=source.commit,
        model_type=str(config.model_type),
        architecture=type(module).__name__,
        tokenizer=tokenizer,
        template=_template(tokenizer),
        logits_width=logits_width(module),
        embedding_rows=int(table.shape[0]),
        embedding_width=int(table.shape[1]),
        context=context_of(config),
        end_ids=end_ids(tokenizer, _with_ends(config, generation)),
        licence=licence(source.path),
        parameters=sum(tensor.numel for tensor in tensors),
        memory=_stored_memory(headers) if quantized else _memory(tensors),
        kv_bytes_per_token=_kv_bytes(module),
        weight_bytes=sum(source.sizes[name] for name in names) if names else None,
        safetensors=any(name.endswith(".safetensors") for name in names),
        stored=None if stored is None else str(stored).removeprefix("torch."),
        quantization=quantized or member.quantization,
        adapter=member.adapter,
        adapter_bytes=adapter,
        sampling={k: generation[k] for k in SAMPLING if generation.get(k) is not None},
        rollback=_rollback(config, member.attn_implementation or "sdpa"),
    )


def _headers(member: Member, source: Source, names: list[str]) -> list[StoredTensor]:
    """Names, dtypes and shapes of all stored tensors: from files here, else from the Hub.

    Empty where a file has no such header; loading refuses that file, with the reason.
    """
    names = [name for name in names if name.endswith(".safetensors")]
    here = [source.path / name for name in names]
    try:
        if all(path.is_file() for path in here):
            return [t for path in here for t in read_header(str(member.name), path)]
    except MemberError:
        return []
    try:
        with bars(never=True), explained(member):
            found = HfApi().get_safetensors_metadata(
                member.model, revision=source.commit, token=_token(member)
            )
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        return []
    return [t for file in found.files_metadata.values() for t in _listed(file)]


def _listed(file: Any) -> list[StoredTensor]:
    """The tensors of a header that was read on the Hub."""
    return [StoredTensor(n, str(t.dtype), tuple(t.shape)) for n, t in file.tensors.items()]


def _token(member: Member) -> str | None:
    return member.token.get_secret_value() if member.token is not None else None


def _skeleton(member: Member, config: Any) -> Any:
    """The model without weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=bool(member.trust_remote_code)
            ).eval()
    except _UNREADABLE as error:
        raise MemberError(
            f"member {title(member)}: {member.model!r} (model_type {config.model_type!r}) is no "
            f"causal language model of this transformers: {first_line(error)}"
        ) from error


def _memory(tensors: list[StoredTensor]) -> dict[str, int]:
    """Bytes in memory by dtype, and by the quantisations that this package names."""
    plain = {name: memory_needed(tensors, dtype, None) for name, dtype in DTYPES.items()}
    for quantization in ("bnb-8bit", "bnb-4bit"):
        plain[quantization] = memory_needed(tensors, torch.bfloat16, quantization)
    return plain


def _stored_memory(headers: list[StoredTensor]) -> dict[str, int]:
    """Bytes in memory of a checkpoint that is already quantised, by the dtype of its rest."""
    if not headers:
        return {}
    return {name: memory_needed(headers, dtype, None) for name, dtype in DTYPES.items()}


def _kv_bytes(module: Any) -> dict[str, int]:
    """Bytes of keys and values a token and row, by dtype: the model on the meta device is asked."""
    try:
        ids = torch.zeros((1, 1), dtype=torch.long, device="meta")
        layers = module(input_ids=ids, use_cache=True).past_key_values.layers
        numbers = sum(int(layer.keys.numel() + layer.values.numel()) for layer in layers)
    except _UNREADABLE:  # it keeps no such cache
        return {}
    return {name: numbers * dtype.itemsize for name, dtype in DTYPES.items()}


def _adapter(member: Member) -> int | None:
    """Bytes of an adapter's tensors: of files here, else by the header on the Hub."""
    if member.adapter is None:
        return None
    file = "adapter_model.safetensors"
    if Path(member.adapter).expanduser().is_dir() or member.local_files_only:
        folder = cast(Path, fetch_adapter(member))
        tensors = read_header(str(member.name), folder / file)
    else:
        try:
            with bars(never=True), explained(member, member.adapter):
                found = HfApi().parse_safetensors_file_metadata(
                    member.adapter, file, token=_token(member)
                )
        except SafetensorsParsingError as error:
            raise MemberError(
                f"member {title(member)}: adapter {member.adapter!r} has a damaged {file} "
                f"({first_line(error)}); save it again with PEFT's save_pretrained"
            ) from error
        tensors = _listed(found)
    return memory_needed(tensors, stored_dtype(tensors) or torch.float32, None)


def _json(member: Member, path: Path) -> dict[str, Any]:
    """A JSON file of a member; empty when there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise MemberError(
            f"member {title(member)}: {str(path)!r} is no JSON object ({first_line(error)}); "
            "repair or delete it"
        ) from error


def _with_ends(config: Any, generation: dict[str, Any]) -> Any:
    """What a loaded model says of its end ids."""
    own = SimpleNamespace(eos_token_id=generation.get("eos_token_id"))
    return SimpleNamespace(generation_config=own, config=config)


def _template(tokenizer: Any) -> str | None:
    """The chat template, of several the default one."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else (template or {}).get("default")


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
    try:
        head = metadata_load(card) or {}
    except Exception as error:  # of the YAML reader; a card is no reason to refuse a model
        return f"unreadable: {first_line(error)}"
    names = head.get("license") or []
    named = ", ".join(map(str, names if isinstance(names, list) else [names])) or None
    return f"{named} ({head['license_name']})" if named and head.get("license_name") else named


def _quantization(config: Any) -> str | None:
    """Quantisation method of a checkpoint."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _rollback(config: Any, attention: str) -> Literal["exact", "replayed"] | None:
    """How the cache is rolled back, where the family is known."""
    if rope_switch(config) is not None:
        return "replayed"
    plans = [mask_plan(config, attention, one_mask) for one_mask in (False, True)]
    known = config.model_type in KNOWN and any(plan is not None for plan in plans)
    return "exact" if known else None
