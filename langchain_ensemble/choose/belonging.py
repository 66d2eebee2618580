"""Whose a calibration is: members, tokenizers, views, fusion; checked where members are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from langchain_ensemble.building import Built
from langchain_ensemble.choose.calibration_file import Calibration, early_facts, read_calibration
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion.base import Fusion
from langchain_ensemble.params import EnsembleParams

Reads = Literal["texts", "conversations"]
"""Whether members read raw texts, or conversations in their own templates."""

OTHER = {
    "texts": "raw texts (EnsembleLLM)",
    "conversations": "conversations (ChatEnsemble)",
}


def belongs_to(
    built: Built, params: EnsembleParams, fusion: Fusion, reads: Reads
) -> dict[str, Any]:
    """Say who an ensemble is, as far as learned weights depend on it.

    Args:
        built: What is loaded.
        params: What is fixed.
        fusion: The fusion.
        reads: What its members read. A template and a system prompt count only for conversations.

    Returns:
        JSON.
    """
    settings = {m.name: m for m in params.members}
    members: dict[str, dict[str, Any]] = {}
    for member, vocabulary in zip(built.members, built.vocabularies, strict=True):
        own = settings[member.name]
        facts: dict[str, Any] = {
            "weights": member.weights_hash,
            "tokenizer": vocabulary.content_hash,
            "quantization": own.quantization,
            "adapter": own.adapter,
        }
        if reads == "conversations":
            template = (member.chat_template or "").encode()
            facts["chat_template"] = hashlib.sha256(template).hexdigest()[:16]
            facts["system"] = member.system
        members[member.name] = facts
    first = early_facts(params.names, params.main_name, fusion.name, params.open_boundaries)
    settings_of = json.loads(json.dumps(fusion.settings(), default=repr))
    return {**first, "members": members, "fusion settings": settings_of, "reads": reads}


class Calibrated:
    """The calibration of one ensemble: read where it is asked for, checked once a file."""

    def __init__(self, params: EnsembleParams, fusion: Fusion) -> None:
        """Keep who asks; nothing is read.

        Args:
            params: What is fixed.
            fusion: The fusion.
        """
        self._params, self._fusion = params, fusion
        self._good: tuple[str, ...] = ()  # the file and the weights that were checked

    @property
    def digest(self) -> str | None:
        """Hash of the file as it is now; None without ``calibration=``."""
        path = self._params.calibration
        return None if path is None else read_calibration(path).digest

    def of(self, built: Built, reads: Reads | None = None) -> Calibration | None:
        """Give the calibration, if the ensemble has one.

        Args:
            built: What is loaded.
            reads: What a request's members read; None: not known yet.

        Returns:
            The calibration, which is this ensemble's; None without ``calibration=``.

        Raises:
            ConfigError: It cannot be read, or is somebody else's.
        """
        if self._params.calibration is None:
            return None
        found = read_calibration(self._params.calibration)
        made = found.belongs_to.get("reads", "texts")
        if reads is not None and made != reads:
            raise ConfigError(
                f"calibration {found.path!r} was made on {OTHER.get(made, made)}, and this "
                f"request is about {OTHER[reads]}; calibrate on these, or give weights= in numbers"
            )
        asked = (found.digest, *(member.weights_hash for member in built.members))
        if asked != self._good:
            how: Reads = "conversations" if made == "conversations" else "texts"
            found.check(belongs_to(built, self._params, self._fusion, how))
            self._good = asked
        return found

    def weights(self, built: Built, asked: Any, reads: Reads) -> Mapping[str, float] | None:
        """The learned weights, if a request means them.

        Args:
            built: What is loaded.
            asked: ``weights`` of the request.
            reads: What its members read.

        Returns:
            Name → weight; None where others are meant.

        Raises:
            ConfigError: As :meth:`of`.
        """
        if asked not in (None, "calibrated"):
            return None
        found = self.of(built, reads)
        return None if found is None else found.weights
