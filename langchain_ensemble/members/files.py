"""Weight files: verified by their own header, measured and hashed, without reading the weights."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from langchain_ensemble.errors import MemberError

STORED = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
FLOATS = {*STORED}
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
        "I16": 16, "U16": 16, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip
"""Bits an element; all other types take 8."""

HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's entry in a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)


def read_header(who: str, path: Path) -> list[StoredTensor]:
    """Read a safetensors header and check the file against it.

    Args:
        who: Member's name, for messages.
        path: The file.

    Raises:
        MemberError: The file is cut short or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int(struct.unpack("<Q", file.read(8))[0]) if size >= 8 else size
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            raise MemberError(_broken(who, path, f"{size} bytes with a header of {length}"))
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise MemberError(_broken(who, path, "its header is not JSON")) from error
    header.pop("__metadata__", None)
    entries = {str(k): v for k, v in header.items()}
    ends = [int(v["data_offsets"][1]) for v in entries.values()]
    needed = 8 + length + max(ends, default=0)
    if size != needed:
        raise MemberError(_broken(who, path, f"{size} bytes, its header says {needed}"))
    return [
        StoredTensor(name, str(v["dtype"]), tuple(int(n) for n in v["shape"]))
        for name, v in entries.items()
    ]


def _broken(who: str, path: Path, what: str) -> str:
    return (
        f"member {who!r}: weight file {str(path)!r} is damaged ({what}); delete it and download or "
        "copy it again"
    )


def stored_dtype(tensors: Sequence[StoredTensor]) -> torch.dtype | None:
    """The floating dtype that most elements have; None without any."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in FLOATS:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
    return STORED[max(counts, key=lambda key: counts[key])] if counts else None


def memory_needed(
    tensors: Sequence[StoredTensor], dtype: torch.dtype, quantization: str | None
) -> int:
    """Bytes the weights will take in memory.

    Args:
        tensors: What the files hold.
        dtype: Dtype that floating tensors are converted to.
        quantization: As in :class:`~langchain_ensemble.params.Member`; matrices other than
            embeddings and head then take fewer bits.
    """
    bits = quantized_bits(quantization)
    total = 0
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            total += tensor.numel * BITS.get(tensor.dtype, 8) // 8
        elif bits is not None and len(tensor.shape) == 2 and not _is_table(tensor.name):
            total += int(tensor.numel * bits / 8)
        else:
            total += tensor.numel * dtype.itemsize
    return total


def quantized_bits(quantization: str | None) -> float | None:
    """Bits a weight under a quantisation setting (4-bit ones carry half a bit of scales)."""
    if quantization is None or quantization.startswith("gguf:"):
        return None
    return 4.5 if "4" in quantization.split("-", 1)[-1] else 8.25


def _is_table(name: str) -> bool:
    """Whether a matrix is an embedding or the head, which quantisers leave alone."""
    return any(part in name for part in ("embed", "wte", "wpe", "lm_head", "embed_out"))


_hashes: dict[tuple[str, int, int], str] = {}


def content_hash(paths: Sequence[Path]) -> str:
    """SHA-256 over files, in order; each file is read once while it does not change."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        if key not in _hashes:
            with path.open("rb") as file:
                _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(_hashes[key].encode())
    return digest.hexdigest()
