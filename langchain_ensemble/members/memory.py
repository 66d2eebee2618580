"""Whether weights fit: an estimate before they are read, against what is free."""

from __future__ import annotations

import torch

from langchain_ensemble.errors import MemoryLimitError
from langchain_ensemble.members.devices import free_bytes
from langchain_ensemble.members.files import quantized_bits

HEADROOM = 1.1
"""Share of the weights' size that must be free: buffers and the first forwards need some."""


def estimate_from_files(
    file_bytes: int, stored: torch.dtype, dtype: torch.dtype, quantization: str | None
) -> int:
    """Bytes in memory, from the sizes of files that are not here yet.

    Args:
        file_bytes: Sum of the weight files' sizes.
        stored: Dtype the files hold.
        dtype: Dtype that the weights will have.
        quantization: As in :class:`~langchain_ensemble.params.Member`.
    """
    bits = quantized_bits(quantization)
    wanted = dtype.itemsize if bits is None else bits / 8
    return int(file_bytes * wanted / stored.itemsize)


def check_memory(name: str, device: torch.device | None, needed: int) -> None:
    """Compare an estimate with what is free.

    Args:
        name: Member's name, for the message.
        device: The device, or None for a device map over all of them.
        needed: Bytes of the weights.

    Raises:
        MemoryLimitError: It does not fit; needed, free, device and what to lower.
    """
    free, where = free_memory(device)
    if free is not None and needed * HEADROOM > free:
        raise MemoryLimitError(
            f"member {name!r}: its weights need {gib(needed)} and some room beside, but {where} "
            f"has {gib(free)} free; lower dtype= or set quantization=, give another device= or "
            "device_map='auto', or unload another ensemble"
        )


def free_memory(device: torch.device | None) -> tuple[int | None, str]:
    """Free bytes of one device, or of all together for a device map; None: unknown."""
    if device is not None:
        return free_bytes(device), str(device)
    every = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    free = [n for n in (free_bytes(d) for d in [*every, torch.device("cpu")]) if n is not None]
    return (sum(free) if free else None), "this machine (all devices)"


def gib(number: int) -> str:
    """Bytes for people."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**27 else f"{number / 2**20:.1f} MiB"
