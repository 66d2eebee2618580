"""What LangChain may know of a chat model before it runs: its ``profile``.

Built with the object, so it reads small files that are on this disk already and nothing else: no
network, no torch. A member that is not here yet has no known limit until it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from langchain_core.language_models import ModelProfile

from langchain_ensemble.params import Member

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def context_on_disk(member: Member) -> int | None:
    """Read how many tokens a member can hold.

    Args:
        member: A folder, or a Hub id that may be in the local cache.

    Returns:
        Positions of its config; None where it is not on this disk or names none.
    """
    folder = Path(member.model).expanduser()
    path: Any = folder / "config.json"
    if not folder.is_dir():
        try:
            path = try_to_load_from_cache(member.model, "config.json", revision=member.revision)
        except ValueError:  # neither a folder nor a Hub id; loading says so
            return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):
        return None
    return _positions(config) if isinstance(config, Mapping) else None


def _positions(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for part in (inner if isinstance(inner, Mapping) else {}, config):
        for name in _POSITIONS:
            value = part.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None


def profile_of(
    name: str, limits: Iterable[int | None], *, max_tokens: int | None, thinks: bool
) -> ModelProfile:
    """Describe a chat model.

    Args:
        name: The ensemble's name.
        limits: Tokens that each member can hold; None where that is not known.
        max_tokens: Decode steps at most, None: what the context leaves.
        thinks: Whether answers come with reasoning.

    Returns:
        The profile. A conversation must fit every member, so the smallest limit holds; it is left
        out while one of them is not known.
    """
    known = list(limits)
    profile = ModelProfile(
        name=name,
        open_weights=True,
        text_inputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        pdf_inputs=False,
        text_outputs=True,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        reasoning_output=thinks,
        tool_calling=True,
        tool_choice=True,
        tool_call_streaming=True,
        structured_output=True,
        temperature=True,
    )
    smallest = [limit for limit in known if limit is not None]
    if smallest and len(smallest) == len(known):
        profile["max_input_tokens"] = min(smallest)
        profile["max_output_tokens"] = min(
            smallest if max_tokens is None else [*smallest, max_tokens]
        )
    return profile
