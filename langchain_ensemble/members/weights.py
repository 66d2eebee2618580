"""Weights: fetched and verified, measured, read by transformers, shared through the registry.

A member with an adapter holds the base's weights, and the adapter on them: it shares them with the
members that run the base, or other adapters. Where that cannot be, it reads a copy of its own, and
a warning says so once the same weights are in memory twice.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from langchain_ensemble.errors import ConfigError, EnsembleWarning, MemberError, MemoryLimitError
from langchain_ensemble.members.adapters import BASE, NotMixed, check_plain
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
from langchain_ensemble.members.memory import check_memory, estimate_from_files, gib
from langchain_ensemble.members.pool import Pool
from langchain_ensemble.members.registry import Lease, acquire, held
from langchain_ensemble.members.sources import (
    Source,
    fetch_adapter,
    fetch_weights,
    gguf_file,
    refusal,
    weight_names,
)
from langchain_ensemble.params import Member

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

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
        pool: What all sessions over the module share.
        statics: Its forwards of fixed shapes, by ``Member.forward``.
        adapter: Adapter of the module that this member's rows run with.
        base: The share in the base's weights that an adapter holds.
    """

    module: Any
    device: torch.device
    identity: str
    rollback: Rollback
    pool: Pool = field(default_factory=Pool, compare=False)
    statics: dict[str, Any] = field(default_factory=dict, compare=False)
    adapter: str = BASE
    base: Lease[Weights] | None = field(default=None, compare=False)

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
    key = _key(member, source, paths, device, dtype)

    def load(own: Path | None = None) -> Weights:
        module = _read(member, source, device, dtype, quantizer, tensors)
        identity = source.commit or content_hash(paths)
        if own is not None:
            module = _with_adapter(member, module, own)
            identity += "+" + _adapter_hash(own)
        return Weights.of(module, identity, name)

    return acquire(key, load) if adapter is None else _share_base(member, key, load, adapter)


def _share_base(
    member: Member, key: tuple[Any, ...], load: Callable[..., Weights], folder: Path
) -> Lease[Weights]:
    """Put an adapter on the base's weights; read a copy where it cannot be mixed with others.

    Args:
        member: Settings of the member.
        key: Registry key of the base's weights.
        load: Reads the base, or a copy with an adapter in it.
        folder: Where the adapter is.
    """
    files = [folder / file for file in ADAPTER_FILES]
    stamp = (str(folder), *((p.stat().st_size, p.stat().st_mtime_ns) for p in files))

    def added() -> Weights:
        with _fitting(member):
            check_plain(import_module("peft").PeftConfig.from_pretrained(folder))
        lease = acquire(key, load)
        try:
            return _adapted(member, lease, folder)
        except BaseException:
            lease.release()
            raise

    own = (*key, stamp, "own")
    try:
        if own not in held():
            return acquire((*key, stamp), added, _take_off)
        why = "as before"
    except NotMixed as reason:
        why = str(reason)
    lease = acquire(own, lambda: load(folder))
    others = [k for k in held() if isinstance(k, tuple) and k != own and k[: len(key)] == key]
    if others:
        size = gib(sum(p.nbytes for p in lease.value.module.parameters()))
        warnings.warn(
            f"member {title(member)}: adapter {member.adapter!r} cannot run beside others on the "
            f"same weights ({why}); {member.model!r} is in memory twice, {size} + {size}. Save it "
            "as plain LoRA, or load it without the others",
            EnsembleWarning,
            stacklevel=2,
        )
    return lease


def _adapted(member: Member, lease: Lease[Weights], folder: Path) -> Weights:
    """The base's weights with an adapter on them."""
    base = lease.value
    if base.rollback.masks is None:
        raise NotMixed("the model's rows are run one by one")
    with _fitting(member), _build_lock, base.pool.lock:
        name = base.pool.adapters.add(base.module, folder, base.device)
        _forget_forwards(base)
    identity = f"{base.identity}+{_adapter_hash(folder)}"
    return replace(base, identity=identity, adapter=name, base=lease)


def _take_off(weights: Weights) -> None:
    """Take an adapter off the base's weights, and give the share in them back."""
    with weights.pool.lock:
        weights.pool.adapters.remove(weights.module, weights.adapter)
        _forget_forwards(weights)
    cast(Lease[Weights], weights.base).release()


def _forget_forwards(weights: Weights) -> None:
    """Forget static forwards: the module has other layers than it had."""
    for static in weights.statics.values():
        if static is not None:
            static.forget()


def _adapter_hash(folder: Path) -> str:
    return content_hash([folder / file for file in ADAPTER_FILES])


def config_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a config names."""
    value = getattr(config, "dtype", None)
    return DTYPES.get(value) if isinstance(value, str) else cast("torch.dtype | None", value)


def _key(
    member: Member,
    source: Source,
    paths: list[Path],
    device: torch.device | None,
    dtype: torch.dtype,
) -> tuple[Any, ...]:
    """What changes the base's bytes in memory: files, dtype, place, quantisation, attention."""
    where = json.dumps(member.device_map, sort_keys=True) if device is None else str(device)
    files = source.commit or tuple((p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    return (
        str(source.path), files, dtype, where, member.quantization,
        member.attn_implementation, bool(member.trust_remote_code),
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
    """Put a PEFT adapter on a module that nobody shares."""
    with _fitting(member), _build_lock:
        return import_module("peft").PeftModel.from_pretrained(module, folder)


@contextmanager
def _fitting(member: Member) -> Iterator[None]:
    """Say which adapter does not fit which model."""
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        if isinstance(error, MemberError):
            raise
        raise MemberError(
            f"member {title(member)}: adapter {member.adapter!r} does not fit {member.model!r}: "
            f"{first_line(error)}"
        ) from error
