"""Safetensors headers: verified and measured without reading weights."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from langchain_ensemble.errors import MemberError
from langchain_ensemble.members import files
from langchain_ensemble.members.memory import estimate_from_files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "embed_tokens.weight": torch.zeros(100, 8, dtype=torch.bfloat16),
            "layer.weight": torch.zeros(16, 8, dtype=torch.bfloat16),
            "norm.weight": torch.zeros(8),
            "counter": torch.zeros(3, dtype=torch.int64),
        },
        path,
    )
    return path


def test_sizes_are_counted_after_conversion(weights: Path) -> None:
    tensors = files.read_header("m", weights)
    assert files.stored_dtype(tensors) == torch.bfloat16
    assert files.memory_needed(tensors, torch.float32, None) == (800 + 128 + 8) * 4 + 24
    assert files.memory_needed(tensors, torch.bfloat16, None) == (800 + 128 + 8) * 2 + 24
    four = files.memory_needed(tensors, torch.bfloat16, "bnb-4bit")
    assert four == (800 + 8) * 2 + 128 * 4.5 / 8 + 24
    assert estimate_from_files(1000, torch.bfloat16, torch.float32, None) == 2000
    assert estimate_from_files(1000, torch.bfloat16, torch.bfloat16, "torchao-int4") == 281


@pytest.mark.parametrize("size", [0, 7, 8, 40, -1])
def test_every_cut_is_found(weights: Path, size: int) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[:size])
    with pytest.raises(MemberError, match=r"member 'm': weight file .* is damaged .*; delete it"):
        files.read_header("m", weights)


def test_a_header_that_is_no_header_is_refused(weights: Path) -> None:
    weights.write_bytes(struct.pack("<Q", 4) + b"abcd")
    with pytest.raises(MemberError, match="its header is not JSON"):
        files.read_header("m", weights)


def test_hashes_follow_content_and_are_read_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.content_hash([weights])
    monkeypatch.setattr(files.hashlib, "file_digest", None)  # a second reading would fail
    assert files.content_hash([weights]) == before
    monkeypatch.undo()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert files.content_hash([weights]) != before
