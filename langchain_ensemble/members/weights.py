"""Weights: fetched and verified, measured, read by transformers, shared through the registry."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_ensemble.errors import ConfigError, MemberError, MemoryLimitError
from langchain_ensemble.members.devices import DTYPES, resolve_dtype
from langchain_ensemble.members.files import (
    StoredTensor,
    content_hash,
    memory_needed,
    read_header,
    stored_dtype,
)
from langchain_ensemble.members.fit import Rollback, fit
from langchain_ensemble.members.hub import bars, first_line, title
from langchain_ensemble.members.memory import check_memory, estimate_from_files
from langchain_ensemble.members.registry import Lease, acquire
from langchain_ensemble.members.sources import (
    Source,
    fetch_adapter,
    fetch_weights,
    gguf_file,
    refusal,
    weight_names,
)
from langchain_ensemble.params import Member

_build_lock = threading.Lock()
"""transformers builds one model at a time: meanwhile it patches its own classes and torch's default
dtype, and two at once leave weights random. Downloads, checks and hashes run side by side."""


@dataclass(frozen=True)
class Weights:
    """A loaded module and what was learned about it; shared by all members with the same key.

    Attributes:
        module: The transformers model, in eval mode.
        device: Where input ids go.
        identity: Hub commit or content hash of the files.
        rollback: How its cache is rolled back.
    """

    module: Any
    device: torch.device
    identity: str
    rollback: Rollback

    @classmethod
    def of(cls, module: Any, identity: str = "", name: str = "member") -> Weights:
        """Wrap a module that is already in memory, finding out how its cache rolls back.

        Raises:
            MemberError: No session of ours gives the model's own results.
        """
        module.eval()
        device = cast(Tensor, module.get_input_embeddings().weight).device
        if device.type == "meta":  # offloaded by a device map: its hooks move what they are given
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(module, device, identity, fit(name, module, device))


def share_weights(
    member: Member, source: Source, config: Any, device: torch.device | None, quantizer: Any
) -> Lease[Weights]:
    """Load a member's weights, or share them with a member that holds the same.

    Args:
        member: Settings, with a name.
        source: Where its files are.
        config: Its config.
        device: Where it goes; None: by ``member.device_map``.
        quantizer: What :func:`~langchain_ensemble.members.quantization.quantization_config` made.

    Raises:
        ConfigError: A package is missing.
        MemberError: No weights, damaged or incomplete ones.
        MemoryLimitError: They do not fit.
    """
    name = str(member.name)
    target = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = weight_names(member, source)
    if not all((source.path / file).is_file() for file in names):
        stored = config_dtype(config) or torch.float32
        dtype = resolve_dtype(name, member.dtype, stored, target)
        size = sum(source.sizes[file] for file in names)
        check_memory(name, device, estimate_from_files(size, stored, dtype, member.quantization))
    paths = fetch_weights(member, source)
    tensors = [t for p in paths if p.suffix == ".safetensors" for t in read_header(name, p)]
    stored = config_dtype(config) or stored_dtype(tensors) or torch.float32
    dtype = resolve_dtype(name, member.dtype, stored, target)
    adapter = fetch_adapter(member)
    key = _key(member, source, paths, adapter, device, dtype)

    def load() -> Weights:
        module = _read(member, source, device, dtype, quantizer, tensors)
        identity = source.commit or content_hash(paths)
        if adapter is not None:
            module = _with_adapter(member, module, adapter)
            identity += "+" + content_hash([adapter / "adapter_model.safetensors"])
        return Weights.of(module, identity, name)

    return acquire(key, load)


def config_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a config names."""
    value = getattr(config, "dtype", None)
    return DTYPES.get(value) if isinstance(value, str) else cast("torch.dtype | None", value)


def _key(
    member: Member,
    source: Source,
    paths: list[Path],
    adapter: Path | None,
    device: torch.device | None,
    dtype: torch.dtype,
) -> tuple[Any, ...]:
    """What changes bytes in memory: files, dtype, place, quantisation, attention, adapter."""
    where = json.dumps(member.device_map, sort_keys=True) if device is None else str(device)
    files = source.commit or tuple((p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    return (
        str(source.path), files, dtype, where, member.quantization,
        member.attn_implementation, None if adapter is None else str(adapter),
        bool(member.trust_remote_code),
    )  # fmt: skip


def _read(
    member: Member,
    source: Source,
    device: torch.device | None,
    dtype: torch.dtype,
    quantizer: Any,
    tensors: list[StoredTensor],
) -> Any:
    """Call transformers to build the module and read the weights."""
    arguments = _arguments(member, device, dtype, quantizer)
    try:
        with bars(), _build_lock:
            if tensors:
                needed = memory_needed(tensors, dtype, member.quantization)
                check_memory(str(member.name), device, needed)
            module, report = AutoModelForCausalLM.from_pretrained(
                source.path, output_loading_info=True, **arguments
            )
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"member {title(member)}: ran out of memory on {device} while its weights were read "
            f"({error}); lower dtype= or set quantization="
        ) from error
    except MemberError:
        raise
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise MemberError(refusal(member, source, error)) from error
    except ImportError as error:
        raise ConfigError(f"member {title(member)}: {first_line(error)}") from error
    _refuse_lost(member, module, report)
    return module


def _arguments(
    member: Member, device: torch.device | None, dtype: torch.dtype, quantizer: Any
) -> dict[str, Any]:
    """What ``from_pretrained`` is told."""
    where = member.device_map if device is None else {"": device}
    file = gguf_file(member)
    told: dict[str, Any] = {
        "device_map": None if device is not None and device.type == "cpu" else where,
        "quantization_config": quantizer,
        "attn_implementation": member.attn_implementation,
        "gguf_file": file,
        "use_safetensors": True if file is None else None,
    }
    given = {key: value for key, value in told.items() if value is not None}
    return {"dtype": dtype, "trust_remote_code": bool(member.trust_remote_code), **given}


def _refuse_lost(member: Member, module: Any, report: Any) -> None:
    """Refuse a model whose files lack tensors: they would be random."""
    lost = sorted([*report["missing_keys"], *(str(k) for k in report["mismatched_keys"])])
    if lost:
        raise MemberError(
            f"member {title(member)}: the weight files lack {len(lost)} tensors that "
            f"{type(module).__name__} has ({', '.join(lost[:3])} …), which would be random; use "
            "files that belong to this config"
        )


def _with_adapter(member: Member, module: Any, folder: Path) -> Any:
    """Put a PEFT adapter on a module."""
    try:
        with _build_lock:
            return import_module("peft").PeftModel.from_pretrained(module, folder)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise MemberError(
            f"member {title(member)}: adapter {member.adapter!r} does not fit {member.model!r}: "
            f"{first_line(error)}"
        ) from error
