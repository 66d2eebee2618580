"""Where a member's files are: a folder, or a snapshot of the Hub in the local cache.

Hub files come through ``huggingface_hub`` into its own cache: written under another name and moved
when complete, size checked, resumed after a cut. The small files come first, so that a model that
cannot be loaded is refused before its weights are fetched. Every failure names member and cure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from langchain_ensemble.errors import MemberError
from langchain_ensemble.members.files import read_header
from langchain_ensemble.members.hub import Unlisted, bars, explained, first_line, title
from langchain_ensemble.params import Member

SMALL_FILES = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.py",
    "README.md",
    "LICENSE*",
)
"""Everything but weights."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
"""What may hold weights; only safetensors (and a GGUF file by name) is read."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Source:
    """A member's files on disk.

    Attributes:
        path: Folder with config and tokenizer, and the weights once fetched.
        commit: Hub commit; None for a folder of the user's.
        sizes: Weight file → bytes, also of files that are not fetched yet.
    """

    path: Path
    commit: str | None
    sizes: dict[str, int]


def locate(member: Member) -> Source:
    """Find a member's files; fetch the small ones, not the weights.

    Args:
        member: Settings of the member.

    Raises:
        MemberError: Nothing there, no access, no network, no config, a folder's revision.
    """
    folder = Path(member.model).expanduser()
    if folder.is_dir():
        if member.revision is not None:
            raise MemberError(
                f"member {title(member)} has revision={member.revision!r}, but {member.model!r} is "
                "a folder here, which has no revisions; leave it out, or give a Hub id"
            )
        source = Source(folder.resolve(), None, _weights_in(folder))
    elif folder.is_absolute() or member.model.startswith((".", "~")) or folder.exists():
        raise MemberError(
            f"member {title(member)}: folder {member.model!r} does not exist; give a folder with "
            "config.json, tokenizer files and model.safetensors, or a Hub id"
        )
    else:
        path = Path(_download(member, list(SMALL_FILES)))
        source = Source(path, path.name, _remote_sizes(member, path))
    if not (source.path / "config.json").is_file() and not gguf_file(member):
        raise MemberError(
            f"member {title(member)}: {member.model!r} has no config.json, so it is no "
            "transformers model; give one that has config, tokenizer and weights together"
        )
    return source


def fetch_adapter(member: Member) -> Path | None:
    """Bring a member's PEFT adapter onto this disk.

    Returns:
        Its folder; None for a member without one.

    Raises:
        MemberError: It is not there, or not as safetensors.
    """
    if member.adapter is None:
        return None
    folder = Path(member.adapter).expanduser()
    if not folder.is_dir():
        arguments = {**_arguments(member), "repo_id": member.adapter, "revision": None}
        with bars(), explained(member, member.adapter):
            patterns = ["adapter_config.json", "adapter_model.safetensors"]
            folder = Path(snapshot_download(**arguments, allow_patterns=patterns))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise MemberError(
                f"member {title(member)}: adapter {member.adapter!r} has no {file}; save it with "
                "PEFT's save_pretrained (pickled adapters are not read)"
            )
    read_header(str(member.name), folder / "adapter_model.safetensors")
    return folder.resolve()


def fetch_weights(member: Member, source: Source) -> list[Path]:
    """Bring the weight files that will be read onto this disk.

    Returns:
        The files, in order.

    Raises:
        MemberError: There are none, they are pickled, or the download failed.
    """
    names = weight_names(member, source)
    if source.commit is not None:
        _download(member, names, revision=source.commit)
    paths = [source.path / name for name in names]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise MemberError(
            f"member {title(member)}: weight files {', '.join(missing)} are missing in "
            f"{str(source.path)!r}; copy or download them again"
        )
    return paths


def weight_names(member: Member, source: Source) -> list[str]:
    """Names of the weight files that will be read.

    Raises:
        MemberError: There are none, or only pickled ones.
    """
    if (gguf := gguf_file(member)) is not None:
        names = [gguf]
    elif (source.path / INDEX).is_file():
        index = json.loads((source.path / INDEX).read_text(encoding="utf-8"))
        names = list(dict.fromkeys(index["weight_map"].values()))
    else:
        names = [SINGLE]
    if all(name in source.sizes for name in names):
        return names
    others = sorted(name for name in source.sizes if not name.endswith(".safetensors"))
    if others and not any(name.endswith(".safetensors") for name in source.sizes):
        raise MemberError(
            f"member {title(member)}: {member.model!r} has no safetensors weights, only "
            f"{', '.join(others)}. Pickled files can run code and are not read; where you trust "
            "them, convert them once with AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(folder) and give that folder"
        )
    missing = [name for name in names if name not in source.sizes]
    raise MemberError(
        f"member {title(member)}: {member.model!r} has no weights to read: {', '.join(missing)} "
        f"is missing (found: {', '.join(sorted(source.sizes)) or 'none'})"
    )


def gguf_file(member: Member) -> str | None:
    """File name of ``quantization="gguf:<file>"``."""
    text = member.quantization or ""
    return text.removeprefix("gguf:") if text.startswith("gguf:") else None


def refusal(member: Member, source: Source, error: Exception) -> str:
    """Why a config or model class cannot be had."""
    path = source.path / "config.json"
    raw = _json(path)
    foreign = "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING_NAMES
    if foreign and not member.trust_remote_code:
        return (
            f"member {title(member)}: {member.model!r} is run by code of its own repository; read "
            "that code, and if you trust it set trust_remote_code=True"
        )
    how = f" with quantization={member.quantization!r}" if member.quantization else ""
    return (
        f"member {title(member)}: {member.model!r} (model_type {raw.get('model_type')!r}) cannot "
        f"be loaded by this transformers{how}: {first_line(error)}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _weights_in(folder: Path) -> dict[str, int]:
    """Weight files of a folder with their sizes."""
    found = {p.name: p.stat().st_size for pattern in WEIGHT_FILES for p in folder.glob(pattern)}
    return dict(sorted(found.items()))


def _token(member: Member) -> str | None:
    return member.token.get_secret_value() if member.token is not None else None


def _arguments(member: Member) -> dict[str, Any]:
    return {
        "repo_id": member.model,
        "revision": member.revision,
        "token": _token(member),
        "local_files_only": bool(member.local_files_only),
    }


def _remote_sizes(member: Member, path: Path) -> dict[str, int]:
    """Sizes of the weight files at the snapshot's commit; from the cache when offline."""
    try:
        with bars(never=True), explained(member):
            arguments = {**_arguments(member), "revision": path.name}
            listed = snapshot_download(**arguments, allow_patterns=list(WEIGHT_FILES), dry_run=True)
    except Unlisted:
        return _weights_in(path)
    return {item.filename: int(item.file_size) for item in listed}


def _download(member: Member, patterns: list[str], revision: str | None = None) -> str:
    """Fetch files of a repository; returns the snapshot's folder."""
    arguments = _arguments(member)
    if revision is not None:
        arguments["revision"] = revision
    with bars(), explained(member):
        return str(snapshot_download(**arguments, allow_patterns=patterns))
