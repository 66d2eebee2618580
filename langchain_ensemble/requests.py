"""From a request's settings to a task for the loop: who has a voice, and how it is sampled.

Main is first everywhere below this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_ensemble.building import Built
from langchain_ensemble.chat.conversation import Conversation
from langchain_ensemble.contexts import Contexts, check_contexts, no_context
from langchain_ensemble.decoding.admission import Limits
from langchain_ensemble.decoding.draft_model import DraftVoice
from langchain_ensemble.decoding.protocols import Sampling, Teller
from langchain_ensemble.decoding.rating import PromptWeights
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.errors import ConfigError, EnsembleWarning, unknown_name
from langchain_ensemble.fusion.base import Fuser, Fusion
from langchain_ensemble.members.sampling import filters, penalty
from langchain_ensemble.params import EnsembleParams, RequestParams
from langchain_ensemble.roles import refuse_weights
from langchain_ensemble.shares import Shares, resolve_weights


def limits_of(params: EnsembleParams) -> Limits:
    """How much an ensemble does at once.

    Args:
        params: What is fixed.
    """
    share = params.kv_cache_gb
    return Limits(
        max_concurrent=params.max_concurrent,
        max_queue=params.max_queue,
        kv_bytes=None if share is None else int(share * 1e9),
    )


def plain_task(
    built: Built,
    params: EnsembleParams,
    request: RequestParams,
    calibrated: Mapping[str, float] | None = None,
) -> Task:
    """A request's task, without prompts.

    Args:
        built: What is loaded.
        params: What is fixed.
        request: What the request asks for.
        calibrated: The weights of the calibration, if the request means them.

    Returns:
        The task.

    Raises:
        ConfigError: Wrong weights.
    """
    asked = meant(request.weights, calibrated, built.fuser)
    places, weights, online = voices_with_weight(params, asked, calibrated)
    alone = len(places) == 1
    return Task(
        voices=(built.voices[0].alone(),) if alone else tuple(built.voices[p] for p in places),
        weights=weights,
        places=places,
        num_members=len(built.members),
        fuser=None if alone else built.fuser,
        key_bytes=() if alone else built.key_bytes,
        prompts=(),
        request=request,
        sampling=_sampling(request),
        weigh_boundaries=params.open_boundaries == "discount",
        warn=warn,
        draft=None if built.draft is None else DraftVoice(*built.draft),
        online=online,
        regions=built.regions,
    )


def check(
    fusion: Fusion | None,
    params: EnsembleParams,
    weights: Any,
    contexts: Contexts,
    reads: Literal["texts", "conversations"],
) -> None:
    """Refuse what does not fit the members, before anything is loaded.

    Args:
        fusion: The fusion; None: one member speaks alone.
        params: What is fixed.
        weights: As in a request.
        contexts: As in a request.
        reads: What the members read; of conversations also their own system prompts.

    Raises:
        ConfigError: Weights beside roles, or a context of nobody's.
    """
    check_contexts(contexts, params.names)
    if fusion is None:
        return
    refuse_weights(fusion, weights)
    if weights == "online" and not getattr(fusion, "tells", False):
        raise ConfigError(
            f"weights='online' asks how well each member said the answer, and fusion="
            f"{fusion.name!r} does not tell; use fusion='average', or weights='uniform'"
        )
    if fusion.name == "context_aware":
        systems = {} if reads == "texts" else {str(m.name): m.system for m in params.members}
        missing = no_context(fusion.settings(), contexts, systems)
        if missing is not None:
            warn(missing)


def rated(task: Task, before: Sequence[str | Conversation]) -> Task:
    """Let each prompt decide on its weights, where the request says so.

    Args:
        task: The request.
        before: The prompts, or the conversation.

    Returns:
        The task.
    """
    if task.request.weights != "prompt" or len(task.voices) == 1:
        return task
    return replace(task, rating=PromptWeights(task.voices, [*map(_judged, before)]))


def _judged(before: str | Conversation) -> str:
    """What members are judged by: of a conversation the user's own words, in no template."""
    if isinstance(before, str):
        return before
    return "\n\n".join(m.text for m in before.messages if m.role == "user" and m.text)


def scored_by(
    built: Built,
    params: EnsembleParams,
    weights: Any,
    member: str | None,
    before: str | Conversation,
    calibrated: Mapping[str, float] | None,
) -> Shares:
    """Who scores a text, and with which weights; nobody else runs the members meanwhile.

    Args:
        built: What is loaded.
        params: What is fixed.
        weights: As in a request.
        member: The member that scores alone; None: all that have a voice.
        before: What stands before the text.
        calibrated: The weights of the calibration, if they are meant.

    Returns:
        Places and weights, main (or the member) first.

    Raises:
        ConfigError: Unknown member, or wrong weights.
    """
    if member is not None:
        if member not in built.names:
            raise ConfigError(unknown_name("member", member, built.names))
        return Shares((built.names.index(member),), (1.0,))
    weights = meant(weights, calibrated, built.fuser)
    shares = voices_with_weight(params, weights, calibrated)
    if weights == "prompt" and len(shares.places) > 1:
        rating = PromptWeights([built.voices[place] for place in shares.places], [_judged(before)])
        while not rating.done:
            rating.read_on(warn)
        shares = shares._replace(weights=rating.weights[0])
    return shares


def meant(weights: Any, calibrated: Mapping[str, float] | None, fuser: Fuser | None) -> Any:
    """What weights mean that are not given: the calibration's, else the answer's where it tells.

    Args:
        weights: As in a request.
        calibrated: The weights of the calibration, if there is one.
        fuser: The fusion; None with one member.

    Returns:
        As in a request; None: uniform, or those of the calibration.
    """
    follows = weights is None and calibrated is None and isinstance(fuser, Teller)
    return "online" if follows else weights


def voices_with_weight(
    params: EnsembleParams, weights: Any, calibrated: Mapping[str, float] | None = None
) -> Shares:
    """Members that have a voice; main always has one.

    Args:
        params: What is fixed.
        weights: As in a request.
        calibrated: The weights of the calibration, if there is one.

    Returns:
        Places and weights, main first.

    Raises:
        ConfigError: Wrong weights.
    """
    resolved = resolve_weights(weights, params.names, calibrated)
    by_name = dict(zip(params.names, resolved, strict=True))
    shares = [by_name[m.name or ""] for m in params.ordered]
    places = tuple(p for p, share in enumerate(shares) if share > 0 or p == 0)
    online = weights == "online" and len(places) > 1
    return Shares(places, tuple(shares[p] for p in places), online)


def _sampling(request: RequestParams) -> Sampling:
    made = penalty(request.repetition_penalty)
    kept = filters(request.temperature, request.top_k, request.top_p, request.min_p)
    return Sampling(made[0] if made else None, tuple(kept))


def warn(message: str) -> None:
    """Tell the caller something that is no error."""
    warnings.warn(message, EnsembleWarning, stacklevel=2)
