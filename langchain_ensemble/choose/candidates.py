"""What is known of a candidate before it answers: how much memory it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.sizes import Size
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.devices import resolve_device, resolve_dtype
from langchain_ensemble.members.inspection import MemberInfo, inspect_member
from langchain_ensemble.params import Member

TURN = 16
"""Tokens that a chat template adds to a turn, about."""


def measure(member: Member, items: Sequence[Item], max_tokens: int | None) -> Size:
    """Tell what a candidate will need; its config, tokenizer and file headers are read.

    Args:
        member: Its settings, with those of all candidates filled in.
        items: The questions; the longest one decides about the cache.
        max_tokens: Tokens of an answer at most; None: what the context leaves.

    Returns:
        The sizes.

    Raises:
        ConfigError: Settings that cannot be, or a question that is longer than its context.
        MemberError: It cannot be found, or is no causal language model.
    """
    info = inspect_member(member)
    device = None if member.device_map else resolve_device(info.name, member.device)
    stored = getattr(torch, info.stored or "float32")
    dtype = resolve_dtype(info.name, member.dtype, stored, device or torch.device("cpu"))
    name = str(dtype).removeprefix("torch.")
    token = info.kv_bytes_per_token.get(name, 0)
    longest = max(_length(info, item) for item in items)
    context = info.context or longest + (max_tokens or 0)
    cache = token * (context if max_tokens is None else min(longest + max_tokens, context))
    base = _stamp(member.model, info.commit)
    more = [] if member.adapter is None else [_stamp(member.adapter, None)]
    how = (member.model, base, name, member.quantization, str(device), str(member.device_map))
    return Size(
        weights=info.memory.get(_held(member, info) or name),
        own=cache + (info.adapter_bytes or 0),
        parameters=info.parameters,
        template=info.chat_template,
        stamp="; ".join([base, *more]),
        shared=repr(how),
    )


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
    count = len(info.tokenizer(item.text, verbose=False)["input_ids"])
    if info.context is not None and count > info.context:
        raise ConfigError(
            f"{item.where} ({item.text!r:.80}) has {count} tokens, and its context is "
            f"{info.context} positions; leave out the question, or the candidate"
        )
    return count + TURN * len(item.messages or ())
