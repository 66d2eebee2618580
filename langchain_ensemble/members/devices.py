"""Where a member runs, in which dtype, and how much memory is free there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from langchain_ensemble.errors import ConfigError, MemberError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str, device: str | None) -> torch.device:
    """Choose a member's device.

    Args:
        name: Member's name, for messages.
        device: ``"auto"`` or None: the CUDA device with most free memory, else MPS, else the CPU.

    Raises:
        ConfigError: The device is not known or not there.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
            return torch.device("cuda", free.index(max(free)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"member {name!r}: device={device!r} is not a device; "
            "give 'auto', 'cpu', 'cuda:0' or 'mps'"
        ) from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(
            f"member {name!r}: device={device!r}, but this process sees {count} CUDA devices; "
            "use device='auto'"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"member {name!r}: device='mps' is not available here; use device='auto'")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def resolve_dtype(
    name: str, wanted: str | None, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """Choose the dtype of a member's weights in memory.

    Args:
        name: Member's name, for the warning.
        wanted: ``"auto"`` or None: the checkpoint's dtype; on the CPU float32, and float16 with a
            warning on a GPU that has no bfloat16.
        stored: The checkpoint's dtype.
        device: Where the weights will be.
    """
    if wanted is not None and wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    if stored == torch.bfloat16 and device.type == "cuda" and not has_bfloat16(device):
        logger.warning(
            "member %r: %s has no bfloat16; its weights are loaded as float16. "
            "Where values overflow, set dtype='float32'",
            name,
            torch.cuda.get_device_name(device),
        )
        return torch.float16
    return stored


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA device computes bfloat16 in hardware (compute capability 8 and up)."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes, None where it cannot be known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    limits = [n for n in (_meminfo(), _cgroup()) if n is not None]
    return min(limits) if limits else None


def _meminfo() -> int | None:
    """Memory that Linux says is available, in bytes."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    """What a container's memory limit leaves, in bytes."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.exists() and used.exists()):
        return None
    text = limit.read_text().strip()
    return None if text == "max" else max(int(text) - int(used.read_text()), 0)


_cuda_owner: int | None = None


def claim_cuda(name: str, device: torch.device) -> None:
    """Remember the process that uses CUDA; refuse to use it in a child that was forked after.

    Args:
        name: Member's name, for the message.
        device: Where the member's weights are or will be.

    Raises:
        MemberError: This process was forked from one that already used CUDA.
    """
    global _cuda_owner
    if device.type != "cuda":
        return
    if _cuda_owner is None:
        _cuda_owner = os.getpid()
    if _cuda_owner != os.getpid():
        raise MemberError(
            f"member {name!r}: process {os.getpid()} was forked from process {_cuda_owner}, which "
            f"already uses {device}; CUDA does not work in a forked child. Start workers with "
            "multiprocessing.set_start_method('spawn'), or load members only in the child"
        )
