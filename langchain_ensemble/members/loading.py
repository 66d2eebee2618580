"""From settings to a loaded member: locate, inspect, estimate, fetch, load.

Weights come through the registry, so members with the same weights share one module. What differs
between them (name, template, system prompt, tokenizer object, token) is added here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from langchain_ensemble.errors import ConfigError, MemberError, unknown_name
from langchain_ensemble.members.devices import claim_cuda, resolve_device
from langchain_ensemble.members.hub import first_line, title
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.quantization import quantization_config
from langchain_ensemble.members.sources import Source, fetch_weights, gguf_file, locate, refusal
from langchain_ensemble.members.weights import share_weights
from langchain_ensemble.params import Member, derive_name

DEFAULTS = (
    "dtype", "device", "device_map", "quantization", "attn_implementation",
    "trust_remote_code", "local_files_only", "token", "forward",
)  # fmt: skip
"""Settings that an ensemble may give for all members that do not say otherwise."""


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
    lease = share_weights(member, source, config, device, quantizer)
    try:
        return HFMember(name, lease, tokenizer, system=member.system, forward=member.forward)
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
    if (file := gguf_file(member)) is not None:
        fetch_weights(member, source)
        arguments["gguf_file"] = file
    try:
        return AutoConfig.from_pretrained(
            source.path, trust_remote_code=bool(member.trust_remote_code), **arguments
        )
    except (ValueError, KeyError, OSError) as error:
        raise MemberError(refusal(member, source, error)) from error


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
    if (file := gguf_file(member)) is not None:
        arguments["gguf_file"] = file
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
