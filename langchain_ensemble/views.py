"""Views of one model, each with a document of its own: a mixture over what was retrieved (REPLUG).

Equation (Shi et al., NAACL 2024): ``p(y) = sum_d w_d p(y | d, x)`` with
``w_d = softmax(score_d / temperature)``, which is ``fusion={"name": "average", "mean":
"arithmetic"}`` over members of one model. The members share its weights and run as rows of one
forward. No torch is read here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel

from langchain_ensemble.errors import ConfigError
from langchain_ensemble.member import Member, read_member

__all__ = ["documents", "views"]

BREAK = "\n\n"
"""What stands between a document and a raw prompt; a conversation has it in its system turn."""


class _Params(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def main_name(self) -> str: ...


class _Ensemble(Protocol):
    @property
    def params(self) -> _Params: ...


def views(
    model: str | os.PathLike[str] | Mapping[str, Any] | Member, count: int
) -> dict[str, Member]:
    """Make several members of one model, to be told apart by what each reads.

    Args:
        model: Hub id, folder, or a member's settings.
        count: How many members.

    Returns:
        Name → member, for ``members=``: ``{"doc1": ..., "doc2": ...}``; the first is main.

    Raises:
        ConfigError: Fewer than one, or no model.
    """
    if count < 1:
        raise ConfigError(f"views has count={count!r}; it must be at least 1")
    member = read_member(None, model)
    names = [f"doc{number}" for number in range(1, count + 1)]
    return {name: member.model_copy(update={"name": name}) for name in names}


def documents(
    llm: _Ensemble,
    docs: Sequence[str | Document],
    scores: Sequence[float] | None = None,
    *,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Give each member a document of its own, and as much weight as its score says.

    Args:
        llm: An ``EnsembleLLM`` or a ``ChatEnsemble``; main gets the first document, the others the
            next in their order. Members without a document have weight 0 and are not run.
        docs: What was retrieved, one a member at most. None at all: main answers alone.
        scores: One a document, larger is better (give distances with a minus); None: all the same.
        temperature: The weights are ``softmax(scores / temperature)``.

    Returns:
        ``contexts`` and ``weights`` of a call: ``llm.invoke(prompt, **documents(llm, docs))``. A
        raw prompt is set apart from its document by an empty line.

    Raises:
        ConfigError: More documents than members, another number of scores, or numbers that are no
            scores.
    """
    main = llm.params.main_name
    names = [main, *(name for name in llm.params.names if name != main)]
    if len(docs) > len(names):
        raise ConfigError(
            f"{len(docs)} documents for {len(names)} members ({', '.join(map(repr, names))}); "
            "retrieve fewer, or make more views"
        )
    texts = [doc.page_content if isinstance(doc, Document) else doc for doc in docs]
    shares = _softmax(scores, len(texts), temperature) if texts else [1.0]
    weights = dict.fromkeys(llm.params.names, 0.0) | dict(zip(names, shares, strict=False))
    after = "" if isinstance(llm, BaseChatModel) else BREAK
    contexts = {name: text + after for name, text in zip(names, texts, strict=False)}
    return {"contexts": contexts, "weights": weights}


def _softmax(scores: Sequence[float] | None, count: int, temperature: float) -> list[float]:
    if not temperature > 0 or not math.isfinite(temperature):
        raise ConfigError(f"temperature is {temperature!r}; it must be above 0")
    given = [0.0] * count if scores is None else [float(score) for score in scores]
    if len(given) != count:
        raise ConfigError(f"{len(given)} scores for {count} documents; give one for each")
    if not all(map(math.isfinite, given)):
        raise ConfigError(f"scores are {given}; they must be finite numbers")
    best = max(given)
    raw = [math.exp((score - best) / temperature) for score in given]
    return [value / math.fsum(raw) for value in raw]
