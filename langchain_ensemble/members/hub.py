"""How the Hub's client fails and draws: its exceptions in our words, its bars on terminals only."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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

from langchain_ensemble.errors import DownloadError, MemberError
from langchain_ensemble.params import Member

HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""Base of what the Hub's HTTP client raises; its module's name changed between versions."""


def title(member: Member) -> str:
    """A member's name in messages."""
    return repr(member.name or member.model)


class Unlisted(Exception):
    """The Hub cannot be asked; what is in the cache is all there is."""


@contextmanager
def explained(member: Member, repo: str | None = None) -> Iterator[None]:
    """Turn the Hub client's exceptions into ours, with the cure."""
    who = f"member {title(member)}: {(repo or member.model)!r}"
    try:
        yield
    except DryRunError as error:
        raise Unlisted from error
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
        raise DownloadError(
            f"{who} could not be read from the Hub: {first_line(error)}; nothing half-written is "
            "used, try again"
        ) from error
    except OSError as error:
        raise DownloadError(
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
