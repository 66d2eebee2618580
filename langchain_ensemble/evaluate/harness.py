"""What EleutherAI's evaluation harness asks for, in an ensemble's words. Pure; no harness needed.

A conversation travels through the harness as one string, because that is what the harness hands
on. Members have templates of their own, so no rendered text is right for all of them: the string
is the conversation itself as JSON (:func:`chat_text`), and each member renders it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from langchain_ensemble.errors import ConfigError, EnsembleWarning

DEFAULT_MAX_TOKENS = 256
"""The harness's own, where a task says nothing."""

CHAT_KEY = "langchain_ensemble_chat"
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "seed")


def chat_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Write a conversation as the one string that the harness carries."""
    return json.dumps({CHAT_KEY: [dict(m) for m in messages]}, ensure_ascii=False)


def read_chat(context: str) -> list[dict[str, str]] | None:
    """Give back the conversation of :func:`chat_text`; None for any other text."""
    if not context.startswith(f'{{"{CHAT_KEY}": ['):
        return None
    try:
        read = json.loads(context)
    except ValueError:
        return None
    messages: list[dict[str, str]] = read[CHAT_KEY]
    return messages


def moved_border(context: str, continuation: str) -> tuple[str, str]:
    """Move white space from the context's end to the continuation's start, as the harness does.

    Tokens of most vocabularies begin with a space, hardly any ends with one.
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def call_settings(gen_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Read a task's generation settings as those of a call.

    Args:
        gen_kwargs: ``until``, ``max_gen_toks`` (or one of its three other names), ``do_sample``,
            ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``, ``seed``.
            Greedy unless ``do_sample`` or a temperature above 0 says otherwise.

    Returns:
        ``stop``, ``max_tokens``, ``temperature``, and what else was given.

    Raises:
        ConfigError: Anything else, or settings that contradict each other.
    """
    given = {name: value for name, value in gen_kwargs.items() if value is not None}
    if given.get("num_beams") == 1:  # some tasks say that they want no beams
        del given["num_beams"]
    known = {"until", "do_sample", "temperature", *MAX_TOKENS, *SAMPLING}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(
            f"generation settings {unknown} have no meaning for an ensemble; leave them out of the "
            f"task and of --gen_kwargs (known: {', '.join(sorted(known))})"
        )
    lengths = {name: int(given[name]) for name in MAX_TOKENS if name in given}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"generation settings contradict each other: {lengths}; give one")
    temperature = _temperature(given.get("do_sample"), given.get("temperature"))
    return {
        "stop": _until(given.get("until")),
        "max_tokens": next(iter(lengths.values()), DEFAULT_MAX_TOKENS),
        "temperature": temperature,
        **{name: given[name] for name in SAMPLING if name in given},
    }


def _until(until: Any) -> list[str]:
    texts = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        raise ConfigError(f"until={until!r}; it takes a text or a list of texts")
    return [text for text in texts if text]  # "" is the harness's word for no stop


def _temperature(do_sample: Any, temperature: Any) -> float:
    value = None if temperature is None else float(temperature)
    if do_sample is None:
        return value or 0.0
    if not isinstance(do_sample, bool):
        raise ConfigError(f"do_sample={do_sample!r}; it takes true or false")
    if not do_sample:
        if value:
            warnings.warn(
                f"do_sample=false with temperature={value:g}: greedy, the temperature is not used",
                EnsembleWarning,
                stacklevel=2,
            )
        return 0.0
    if value == 0:
        raise ConfigError("do_sample=true with temperature=0; draw with a temperature above 0")
    return 1.0 if value is None else value


def rounds(requests: Sequence[Hashable]) -> list[int]:
    """Number each request's equals: 0 for the first, 1 for its first repetition, and so on.

    Equal prompts with one seed get equal answers, so repetitions are drawn in rounds of their own.
    """
    seen: dict[Hashable, int] = {}
    numbers = []
    for request in requests:
        numbers.append(seen.get(request, 0))
        seen[request] = numbers[-1] + 1
    return numbers
