"""From settings to a loaded member: locate, inspect, estimate, fetch, load.

Weights come through the registry, so members with the same weights share one module. What differs
between them (name, template, system prompt, tokenizer object, token) is added here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from langchain_ensemble.errors import ConfigError, MemberError, MemoryLimitError, unknown_name
from langchain_ensemble.members.devices import claim_cuda, free_bytes, resolve_device, resolve_dtype
from langchain_ensemble.members.files import (
    StoredTensor,
    content_hash,
    memory_needed,
    read_header,
    stored_dtype,
)
from langchain_ensemble.members.huggingface import HFMember, Weights
from langchain_ensemble.members.quantization import quantization_config
from langchain_ensemble.members.registry import acquire
from langchain_ensemble.members.sources import (
    Source,
    bars,
    fetch_weights,
    first_line,
    locate,
    title,
)
from langchain_ensemble.params import Member, derive_name

DEFAULTS = (
    "dtype", "device", "device_map", "quantization", "attn_implementation",
    "trust_remote_code", "local_files_only", "token",
)  # fmt: skip
"""Settings that an ensemble may give for all members that do not say otherwise."""

_build_lock = threading.Lock()
"""transformers builds one model at a time: meanwhile it patches its own classes and torch's default
dtype, and two at once leave weights random. Downloads, checks and hashes run side by side."""

HEADROOM = 1.1
"""Share of the weights' size that must be free: buffers and the first forwards need some."""


def with_defaults(member: Member, defaults: Mapping[str, Any]) -> Member:
    """Fill in what a member does not say itself.

    Args:
        member: Settings of one member.
        defaults: Settings for all members, of those in :data:`DEFAULTS`.

    Raises:
        ConfigError: A default that a member does not have.
    """
    for key in defaults:
        if key not in DEFAULTS:
            raise ConfigError(unknown_name("default for members", key, DEFAULTS))
    update = {k: v for k, v in defaults.items() if v is not None and getattr(member, k) is None}
    if member.device is not None:
        update.pop("device_map", None)
    if member.device_map is not None:
        update.pop("device", None)
    return Member(**{**member.model_dump(), **update}) if update else member


def load_member(member: Member, **defaults: Any) -> HFMember:
    """Load one member, or share its weights with one that is loaded.

    Args:
        member: Settings of the member.
        defaults: Settings for what ``member`` leaves open; see :data:`DEFAULTS`.

    Returns:
        The member; give it back with ``close()``.

    Raises:
        ConfigError: Settings that cannot be.
        MemberError: Files, access or model class; says which and what to do.
        MemoryLimitError: The weights do not fit, with the numbers.
    """
    member = with_defaults(member, defaults)
    name = member.name or derive_name(member.model)
    member = member.model_copy(update={"name": name})
    if member.attn_implementation not in (None, "sdpa", "eager"):
        raise ConfigError(
            f"member {name!r}: attn_implementation={member.attn_implementation!r} cannot take a "
            "mask for each row, which ragged rows need; use 'sdpa' (default) or 'eager'"
        )
    device = None if member.device_map else resolve_device(name, member.device)
    if device is not None:
        claim_cuda(name, device)
    quantizer = quantization_config(name, member.quantization)
    source = locate(member)
    config = load_config(member, source)
    tokenizer = load_tokenizer(member, source)
    key = _key(member, source, device)
    lease = acquire(key, lambda: _load_weights(member, source, config, device, quantizer))
    try:
        return HFMember(name, lease, tokenizer, system=member.system)
    except BaseException:
        lease.release()
        raise


def load_members(members: Sequence[Member], **defaults: Any) -> list[HFMember]:
    """Load members side by side.

    Args:
        members: Settings, one a member.
        defaults: As in :func:`load_member`.

    Returns:
        The members in the same order. When one fails the others are given back, and the first
        failure in that order is raised.
    """
    if len(members) == 1:
        return [load_member(members[0], **defaults)]
    with ThreadPoolExecutor(max_workers=len(members), thread_name_prefix="load") as pool:
        futures = [pool.submit(load_member, member, **defaults) for member in members]
    errors = [e for f in futures if (e := f.exception()) is not None]
    if errors:
        for future in futures:
            if future.exception() is None:
                future.result().close()
        raise errors[0]
    return [future.result() for future in futures]


def load_config(member: Member, source: Source) -> Any:
    """Read a model's config.

    Raises:
        MemberError: Unknown architecture, or one that needs the repository's own code.
    """
    arguments: dict[str, Any] = {}
    if (member.quantization or "").startswith("gguf:"):
        fetch_weights(member, source)
        arguments["gguf_file"] = (member.quantization or "").removeprefix("gguf:")
    try:
        return AutoConfig.from_pretrained(
            source.path, trust_remote_code=bool(member.trust_remote_code), **arguments
        )
    except (ValueError, KeyError, OSError) as error:
        raise MemberError(_refusal(member, source, error)) from error


def _refusal(member: Member, source: Source, error: Exception) -> str:
    """Why a config or model class cannot be had."""
    path = source.path / "config.json"
    raw = _json(path)
    if "auto_map" in raw and not member.trust_remote_code:
        return (
            f"member {title(member)}: {member.model!r} is run by code of its own repository; read "
            "that code, and if you trust it set trust_remote_code=True"
        )
    return (
        f"member {title(member)}: {member.model!r} (model_type {raw.get('model_type')!r}) cannot "
        f"be loaded by this transformers: {first_line(error)}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def load_tokenizer(member: Member, source: Source | None = None) -> Any:
    """Load a member's tokenizer, always with the backend that keeps every token.

    transformers prefers mistral-common where it is installed; that backend names no special
    tokens' spellings and merges ids, so the exact one from ``tokenizer.json`` is taken instead.

    Args:
        member: Settings of the member; its chat template, if any, replaces the tokenizer's.
        source: Where its files are, when that is known.

    Raises:
        MemberError: No tokenizer, or only a lossy one.
    """
    source = source or locate(member)
    arguments: dict[str, Any] = {"mistral_format": False}
    if (member.quantization or "").startswith("gguf:"):
        arguments["gguf_file"] = (member.quantization or "").removeprefix("gguf:")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=bool(member.trust_remote_code), **arguments
        )
        if type(tokenizer).__name__ == "MistralCommonBackend":
            if not (source.path / "tokenizer.json").is_file():
                raise MemberError(
                    f"member {title(member)}: its only tokenizer is mistral-common's, which does "
                    "not give the text of every id; use a repository that has tokenizer.json"
                )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source.path)
    except (ValueError, KeyError, OSError, TypeError, ImportError) as error:
        raise MemberError(
            f"member {title(member)}: {member.model!r} has no tokenizer that can be loaded "
            f"({first_line(error)}); its folder needs tokenizer.json (or tokenizer.model)"
        ) from error
    if member.chat_template is not None:
        tokenizer.chat_template = member.chat_template
    return tokenizer


def _key(member: Member, source: Source, device: torch.device | None) -> tuple[Any, ...]:
    """What changes bytes in memory."""
    where = json.dumps(member.device_map, sort_keys=True) if device is None else str(device)
    return (
        str(source.path), source.commit, member.dtype or "auto", where,
        member.quantization, member.attn_implementation, member.adapter,
    )  # fmt: skip


def _load_weights(
    member: Member, source: Source, config: Any, device: torch.device | None, quantizer: Any
) -> Weights:
    """Fetch, verify, estimate and read the weights of one key."""
    paths = fetch_weights(member, source)
    tensors = [
        t for p in paths if p.suffix == ".safetensors" for t in read_header(title(member), p)
    ]
    target = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = stored_dtype(tensors) or getattr(config, "dtype", None) or torch.float32
    dtype = resolve_dtype(str(member.name), member.dtype, stored, target)
    if tensors:
        check_memory(member, device, memory_needed(tensors, dtype, member.quantization))
    module = _read(member, source, device, dtype, quantizer, tensors)
    identity = source.commit or content_hash(paths)
    if member.adapter is not None:
        module, adapter_identity = _with_adapter(member, module)
        identity += f"+{adapter_identity}"
    return Weights.of(module, identity, str(member.name))


def check_memory(member: Member, device: torch.device | None, needed: int) -> None:
    """Compare an estimate with what is free.

    Raises:
        MemoryLimitError: It does not fit; needed, free, device and what to lower.
    """
    free, where = free_memory(device)
    if free is not None and needed * HEADROOM > free:
        raise MemoryLimitError(
            f"member {title(member)}: its weights need {gib(needed)} (and some room beside), but "
            f"{where} has {gib(free)} free; lower dtype= or set quantization=, give another "
            "device= or device_map='auto', or unload another ensemble"
        )


def free_memory(device: torch.device | None) -> tuple[int | None, str]:
    """Free bytes of one device, or of all together for a device map."""
    if device is not None:
        return free_bytes(device), str(device)
    every = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    free = [n for n in (free_bytes(d) for d in [*every, torch.device("cpu")]) if n is not None]
    return (sum(free) if free else None), "this machine (all devices)"


def gib(number: int) -> str:
    """Bytes for people."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**27 else f"{number / 2**20:.1f} MiB"


def _read(
    member: Member,
    source: Source,
    device: torch.device | None,
    dtype: torch.dtype,
    quantizer: Any,
    tensors: list[StoredTensor],
) -> Any:
    """Call transformers to build the module and read the weights."""
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": bool(member.trust_remote_code),
    }
    if device is None:
        arguments["device_map"] = member.device_map
    elif device.type != "cpu":
        arguments["device_map"] = {"": device}
    if quantizer is not None:
        arguments["quantization_config"] = quantizer
    if member.attn_implementation is not None:
        arguments["attn_implementation"] = member.attn_implementation
    if (member.quantization or "").startswith("gguf:"):
        arguments["gguf_file"] = (member.quantization or "").removeprefix("gguf:")
    else:
        arguments["use_safetensors"] = True
    try:
        with bars(), _build_lock:
            module, report = AutoModelForCausalLM.from_pretrained(
                source.path, output_loading_info=True, **arguments
            )
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"member {title(member)}: ran out of memory on {device} while its weights were read "
            f"({error}); lower dtype= or set quantization="
        ) from error
    except (ValueError, KeyError, OSError) as error:
        raise MemberError(_refusal(member, source, error)) from error
    except ImportError as error:
        raise ConfigError(f"member {title(member)}: {first_line(error)}") from error
    lost = sorted([*report["missing_keys"], *(str(k) for k in report["mismatched_keys"])])
    if lost:
        raise MemberError(
            f"member {title(member)}: the weight files lack {len(lost)} tensors that "
            f"{type(module).__name__} has ({', '.join(lost[:3])} …), which would be random; use "
            "files that belong to this config"
        )
    return module


def _with_adapter(member: Member, module: Any) -> tuple[Any, str]:
    """Put a PEFT adapter on a module."""
    from peft import PeftModel

    adapter = Member(
        str(member.adapter), name=member.name, token=member.token,
        local_files_only=member.local_files_only,
    )  # fmt: skip
    folder = Path(adapter.model).expanduser()
    if not folder.is_dir():
        raise MemberError(f"member {title(member)}: adapter {adapter.model!r} is no folder")
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise MemberError(
            f"member {title(member)}: adapter {adapter.model!r} has no adapter_model.safetensors"
        )
    read_header(title(member), file)
    return PeftModel.from_pretrained(module, folder), content_hash([file])
