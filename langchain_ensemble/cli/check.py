"""``check``: do these members fit? Inspect, compare, report; no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from langchain_ensemble.cli import check_tables
from langchain_ensemble.cli.console import BAD, GOOD, say_json, stderr, stdout
from langchain_ensemble.cli.fitting import fusions, pairs, union
from langchain_ensemble.cli.inspection import Inspected, inspect
from langchain_ensemble.errors import EnsembleError
from langchain_ensemble.fusion import get_fusion
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.members.devices import resolve_device, resolve_dtype
from langchain_ensemble.members.inspection import MemberInfo
from langchain_ensemble.members.memory import HEADROOM, free_memory
from langchain_ensemble.params import EnsembleParams, Member

PLANS = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "8-bit": ("bnb-8bit", "bfloat16"),
    "4-bit": ("bnb-4bit", "bfloat16"),
}
"""Memory plan → what the weights are held in, and the cache; float16 is as bfloat16."""

KV_TOKENS = 1000
"""A cache's size is told for so many tokens."""


def check(llm: EnsembleLLM, *, as_json: bool) -> int:
    """Report whether the members fit each other and the fusion.

    Args:
        llm: The ensemble.
        as_json: One JSON object; sizes in bytes.

    Returns:
        The exit code: 1 where something would fail.
    """
    with stderr().status("reading tokenizers") as status:
        report = report_of(llm.params, status.update)
    if as_json:
        say_json(report)
    else:
        check_tables.show(report, stdout())
    return GOOD if report["fits"] else BAD


def report_of(params: EnsembleParams, on_progress: Any = lambda _: None) -> dict[str, Any]:
    """Inspect and compare.

    Args:
        params: What is fixed for the ensemble.
        on_progress: Called with what is being read.

    Returns:
        The report, as JSON.

    Raises:
        ConfigError: The fusion does not have these settings.
    """
    get_fusion(params.fusion)  # refuses wrong settings before anything is fetched
    problems: list[dict[str, Any]] = []
    members: list[Inspected] = []
    for settings in params.ordered:
        on_progress(f"reading {settings.name}")
        try:
            members.append(inspect(settings))
        except EnsembleError as error:
            problems.append(_problem("error", settings.name, str(error)))
    for member in members:
        problems += _remarks(member)
    report: dict[str, Any] = {
        "main": params.main_name,
        "fusion": params.fusion_name,
        "members": [_member(member) for member in members],
        "common": None,
        "fusions": None,
    }
    if len(members) == len(params.members):
        on_progress("comparing vocabularies")
        aligned = union(members)
        needs = fusions(members, aligned, params.fusion)
        report["common"] = {"all": len(aligned.alignment.common), "pairs": pairs(members)}
        report["fusions"] = needs
        problem = needs[params.fusion_name]["problem"] if len(members) > 1 else None
        if problem is not None:
            problems.append(_problem("error", None, problem))
        problems += _memory(params.ordered, members)
    report["problems"] = problems
    report["fits"] = not any(problem["level"] == "error" for problem in problems)
    return report


def _problem(level: str, member: str | None, message: str) -> dict[str, Any]:
    return {"level": level, "member": member, "message": message}


def _remarks(member: Inspected) -> list[dict[str, Any]]:
    """What a user should know about one member."""
    said = []
    if not member.vocabulary.end_ids:
        said.append("has no end token: it can never vote to end")
    for plain, spelling in member.plain_ends.items():
        said.append(
            f"ends on id {plain}, ordinary text of its tokenizer ({spelling!r}); "
            "eos_token_id of its config or generation_config belongs to another one"
        )
    if member.info.weight_bytes is None:
        said.append("has no weight files here; everything else was checked")
    if not member.info.memory:
        said.append(
            f"is already quantised ({member.info.quantization}): its size in memory is told by "
            "the headers of its weight files, which could not be read"
        )
    if not member.spells_everything:
        said.append(
            "cannot spell every character; others reach it as its unk id, and it never says them"
        )
    if member.info.rollback is None:
        said.append(
            f"is of the family {member.info.model_type!r}, whose cache is tried out when it is "
            "loaded"
        )
    who = f"member {member.name!r} "
    return [_problem("warning", member.name, who + text) for text in said]


def _memory(settings: Sequence[Member], members: Sequence[Inspected]) -> list[dict[str, Any]]:
    """Compare what all weights need with what is free here, device by device."""
    needed: dict[str, int] = {}
    free: dict[str, int | None] = {}
    said: list[dict[str, Any]] = []
    seen: list[tuple[Any, ...]] = []
    for member, inspected in zip(settings, members, strict=True):
        try:
            device = None if member.device_map else resolve_device(inspected.name, member.device)
        except EnsembleError as error:
            said.append(_problem("warning", inspected.name, str(error)))
            continue
        plan = _plan(member, inspected.info, device)
        weights = (member.model, inspected.info.commit, plan, str(device), member.adapter)
        if weights in seen:
            continue  # shared
        seen.append(weights)
        room, where = free_memory(device)
        needed[where] = needed.get(where, 0) + _weights(inspected.info, plan)
        free[where] = room
    for where, size in needed.items():
        room = free[where]
        if room is not None and size * HEADROOM > room:
            text = (
                f"the weights need {size / 2**30:.1f} GiB and some room beside, {where} has "
                f"{room / 2**30:.1f} GiB free here; lower dtype=, set quantization=, or use a "
                "larger machine"
            )
            said.append(_problem("warning", None, text))
    return said


def _weights(info: MemberInfo, plan: str) -> int:
    """Bytes of weights and adapter under a plan; 0 where they are unknown, which was said."""
    return info.memory.get(PLANS[plan][0], 0) + (info.adapter_bytes or 0)


def _plan(member: Member, info: MemberInfo, device: torch.device | None) -> str:
    """The memory plan that a member's settings come to on a device."""
    bits = "4-bit" if "4" in str(member.quantization).split("-", 1)[-1] else "8-bit"
    wanted = member.quantization is not None and not member.quantization.startswith("gguf:")
    if wanted and PLANS[bits][0] in info.memory:
        return bits
    stored = getattr(torch, info.stored or "float32")
    dtype = resolve_dtype(info.name, member.dtype, stored, device or torch.device("cpu"))
    return "float32" if dtype == torch.float32 else "bfloat16"


def _member(member: Inspected) -> dict[str, Any]:
    """One member as JSON."""
    info, vocabulary = member.info, member.vocabulary
    roles: dict[str, list[dict[str, Any]]] = {}
    for token_id, spelling in member.control.items():
        role = str(vocabulary.token_roles[token_id])
        roles.setdefault(role, []).append({"id": token_id, "token": spelling})
    return {
        "name": info.name,
        "model": info.model,
        "commit": info.commit,
        "model_type": info.model_type,
        "architecture": info.architecture,
        "stored_dtype": info.stored,
        "quantization": info.quantization,
        "parameters": info.parameters,
        "adapter": info.adapter and {"model": info.adapter, "size": info.adapter_bytes},
        "context": info.context,
        "tokenizer_size": vocabulary.size,
        "logits_width": vocabulary.width,
        "keys": len(vocabulary.key_of),
        "spells_everything": member.spells_everything,
        "end_ids": list(vocabulary.end_ids),
        "roles": dict(sorted(roles.items())),
        "chat_template": info.chat_template,
        "licence": info.licence,
        "generation_config": {"values": dict(info.sampling), "applied": False},
        "rollback": info.rollback,
        "weight_files": info.weight_bytes,
        "memory": {plan: _sizes(info, *how) for plan, how in PLANS.items()},
        "kv_tokens": KV_TOKENS,
    }


def _sizes(info: MemberInfo, weights: str, cache: str) -> dict[str, int | None]:
    """Bytes of weights and cache; None: unknown, or not for this checkpoint."""
    token = info.kv_bytes_per_token.get(cache)
    kv_cache = None if token is None else token * KV_TOKENS
    return {"weights": info.memory.get(weights), "kv_cache": kv_cache}
