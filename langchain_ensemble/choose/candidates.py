"""What is known of a candidate before it answers: how much memory it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from langchain_ensemble.choose.devset import Item
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.devices import resolve_device, resolve_dtype
from langchain_ensemble.members.inspection import MemberInfo, inspect_member
from langchain_ensemble.members.memory import HEADROOM
from langchain_ensemble.params import Member

TURN = 16
"""Tokens that a chat template adds to a turn, about."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)?\s*", re.IGNORECASE)
_UNITS = {"gb": 1e9, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20}


@dataclass(frozen=True)
class Size:
    """What a candidate costs.

    Attributes:
        weights: Bytes of its weights as they are held; None: not known.
        cache: Bytes of the KV cache of one longest question and answer; None: not known.
        parameters: Numbers in its weights: a token's cost, next to another candidate's.
        template: Whether it has a chat template.
        stamp: Commit on the Hub, or names, sizes and times of the files in its folder: what tells
            one state of the weights from another.
    """

    weights: int | None
    cache: int | None
    parameters: int
    template: bool
    stamp: str

    @property
    def memory(self) -> int | None:
        """Bytes that it needs alone: weights, some room beside, the cache of one answer."""
        return None if self.weights is None else int(self.weights * HEADROOM) + (self.cache or 0)


def read_vram(vram: str | float | None) -> int | None:
    """Read a memory limit.

    Args:
        vram: ``"24GB"``, ``"24GiB"``, ``"800MB"``, or a number of GB (1e9 bytes).

    Returns:
        Bytes; None where there is no limit.

    Raises:
        ConfigError: Neither.
    """
    if vram is None:
        return None
    found = _SIZE.fullmatch(str(vram))
    size = int(float(found[1]) * _UNITS[(found[2] or "GB").lower()]) if found else 0
    if size <= 0:
        raise ConfigError(f"vram is {vram!r}; write it as '24GB' or '24GiB', or as a number of GB")
    return size


def measure(member: Member, items: Sequence[Item], max_tokens: int) -> Size:
    """Tell what a candidate will need; its config, tokenizer and file headers are read.

    Args:
        member: Its settings, with those of all candidates filled in.
        items: The questions; the longest one decides about the cache.
        max_tokens: Tokens of an answer at most.

    Returns:
        The sizes.

    Raises:
        ConfigError: Settings that cannot be.
        MemberError: It cannot be found, or is no causal language model.
    """
    info = inspect_member(member)
    device = None if member.device_map else resolve_device(info.name, member.device)
    stored = getattr(torch, info.stored or "float32")
    dtype = resolve_dtype(info.name, member.dtype, stored, device or torch.device("cpu"))
    name = str(dtype).removeprefix("torch.")
    weights = info.memory.get(_held(member, info) or name)
    if weights is not None:
        weights += info.adapter_bytes or 0
    token = info.kv_bytes_per_token.get(name)
    longest = max(_length(info, item) for item in items) + max_tokens
    longest = min(longest, info.context or longest)
    cache = None if token is None else token * longest
    stamp = "; ".join(_stamp(path, info.commit) for path in (member.model, member.adapter) if path)
    return Size(weights, cache, info.parameters, info.chat_template, stamp)


def _held(member: Member, info: MemberInfo) -> str | None:
    """The quantisation that weights are held in, by its name in ``info.memory``."""
    setting = member.quantization
    if setting is None or setting.startswith("gguf:"):
        return None
    held = "bnb-4bit" if "4" in setting.split("-", 1)[-1] else "bnb-8bit"
    return held if held in info.memory else None


def _stamp(model: str, commit: str | None) -> str:
    """What tells one state of a model's files from another."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return commit or model
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return " ".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)


def _length(info: MemberInfo, item: Item) -> int:
    """Tokens of a question, about."""
    return len(info.tokenizer(item.text)["input_ids"]) + TURN * len(item.messages or ())
