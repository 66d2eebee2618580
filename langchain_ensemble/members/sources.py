"""Where a member's files are: a folder, or a snapshot of the Hub in the local cache.

Hub files come through ``huggingface_hub`` into its own cache: written under another name and moved
when complete, size checked, resumed after a cut. The small files come first, so that a model that
cannot be loaded is refused before its weights are fetched. Every failure names member and cure.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from huggingface_hub.utils.tqdm import disable_progress_bars as hub_bars_off
from huggingface_hub.utils.tqdm import enable_progress_bars as hub_bars_on
from transformers.utils import logging as transformers_logging

from langchain_ensemble.errors import MemberError
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


HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""Base of what the Hub's HTTP client raises; its module's name changed between versions."""


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
        MemberError: Nothing there, no access, no network, no config.
    """
    folder = Path(member.model).expanduser()
    if folder.is_dir():
        source = Source(folder.resolve(), None, _weights_in(folder))
    elif folder.is_absolute() or member.model.startswith((".", "~")) or folder.exists():
        raise MemberError(
            f"member {title(member)}: folder {member.model!r} does not exist; give a folder with "
            "config.json, tokenizer files and model.safetensors, or a Hub id"
        )
    else:
        path = Path(_download(member, list(SMALL_FILES)))
        source = Source(path, path.name, _remote_sizes(member, path))
    if not (source.path / "config.json").is_file() and not _gguf(member):
        raise MemberError(
            f"member {title(member)}: {member.model!r} has no config.json, so it is no "
            "transformers model; give one that has config, tokenizer and weights together"
        )
    return source


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
    if (gguf := _gguf(member)) is not None:
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


def title(member: Member) -> str:
    """A member's name in messages."""
    return repr(member.name or member.model)


def _gguf(member: Member) -> str | None:
    """File name of ``quantization="gguf:<file>"``."""
    text = member.quantization or ""
    return text.removeprefix("gguf:") if text.startswith("gguf:") else None


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
    except _Unlisted:
        return _weights_in(path)
    return {item.filename: int(item.file_size) for item in listed}


def _download(member: Member, patterns: list[str], revision: str | None = None) -> str:
    """Fetch files of a repository; returns the snapshot's folder."""
    arguments = _arguments(member)
    if revision is not None:
        arguments["revision"] = revision
    with bars(), explained(member):
        return str(snapshot_download(**arguments, allow_patterns=patterns))


class _Unlisted(Exception):
    """The Hub cannot be asked; what is in the cache is all there is."""


@contextmanager
def explained(member: Member) -> Iterator[None]:
    """Turn the Hub client's exceptions into ours, with the cure."""
    who = f"member {title(member)}: {member.model!r}"
    try:
        yield
    except DryRunError as error:
        raise _Unlisted from error
    except GatedRepoError as error:
        raise MemberError(
            f"{who} is gated; accept its terms on its Hub page, then pass token= of the account "
            "that did (or run `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise MemberError(
            f"{who} has no revision {member.revision!r}; give a branch, tag or commit that exists"
        ) from error
    except RepositoryNotFoundError as error:
        raise MemberError(
            f"{who} is no folder here and not on the Hub, or private; check the id, or pass token="
        ) from error
    except HFValidationError as error:
        raise MemberError(f"{who} is neither a folder here nor a Hub id ({error})") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MemberError(
            f"{who} is not complete in the local cache and the Hub cannot be asked "
            f"({_offline(member, error)}); load it once with a network, or give a local folder"
        ) from error
    except PermissionError as error:
        raise MemberError(
            f"{who} must be downloaded, but {error.filename!r} cannot be written; set HF_HOME to a "
            "folder that can, or fill the cache beforehand"
        ) from error
    except HTTP_ERROR as error:
        raise MemberError(
            f"{who} could not be read from the Hub: {first_line(error)}; nothing half-written is "
            "used, try again"
        ) from error
    except OSError as error:
        raise MemberError(
            f"{who} could not be downloaded: {first_line(error)}; nothing half-written is used, "
            "try again"
        ) from error


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that follow."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _offline(member: Member, error: BaseException) -> str:
    """Why the Hub was not asked."""
    if member.local_files_only:
        return "local_files_only=True"
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else first_line(error)


_bars_lock = threading.Lock()
_bars_depth = 0
_bars_were = (True, True)


@contextmanager
def bars(never: bool = False) -> Iterator[None]:
    """Let Hugging Face draw its progress bars on a terminal only; settings are left as found."""
    global _bars_depth, _bars_were
    if not never and sys.stderr is not None and sys.stderr.isatty():
        yield
        return
    with _bars_lock:
        if _bars_depth == 0:
            _bars_were = (
                not are_progress_bars_disabled(),
                transformers_logging.is_progress_bar_enabled(),
            )
            _quiet(True, True)
        _bars_depth += 1
    try:
        yield
    finally:
        with _bars_lock:
            _bars_depth -= 1
            if _bars_depth == 0:
                _quiet(not _bars_were[0], not _bars_were[1])


def _quiet(hub: bool, transformers: bool) -> None:
    """Switch the bars of both libraries off or on."""
    if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        (hub_bars_off if hub else hub_bars_on)()
    if transformers:
        transformers_logging.disable_progress_bar()
    else:
        transformers_logging.enable_progress_bar()
