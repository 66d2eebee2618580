"""What ``choose_members`` found: plain data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from langchain_ensemble.choose.compare import Ceiling, Pair, System
from langchain_ensemble.choose.signals import Signal
from langchain_ensemble.choose.verdict import Contest, Verdict
from langchain_ensemble.errors import ConfigError


@dataclass(frozen=True)
class Findings:
    """What was measured, and what it comes to.

    Attributes:
        verdict: What to use, in one sentence.
        suggestion: Settings that ``from_config`` of :attr:`suggested_class` reads.
        suggested_class: ``"EnsembleLLM"`` or ``"ChatEnsemble"``.
        questions: The dev set's questions.
        answers: What is right, by question.
        level: Of all intervals; where several ensembles were tried it is raised, so that the best
            of them is not taken for better by chance (Bonferroni).
        systems: Every way to answer that was measured: candidates, samples, votes, ensembles.
        best: The best single candidate.
        best_in_memory: The best single candidate in the memory of the ensemble.
        members: Who was ensembled; one name: nobody.
        compatible: Whether UniTE's rule takes them.
        reasons: Why another candidate was not taken, by name.
        contests: Each other system against the best single candidate, by name.
        pairs: Every two candidates.
        ceilings: Of the members, and of all candidates where there are more.
        signals: Confidences of the best ensemble's answers (of the best candidate's without one).
        confidence: What was learned from those answers, as ``ConfidenceMap.from_dict`` reads it;
            None where there is one member, or too few right or wrong answers.
        left_out: Candidates that were not measured, and why.
        skipped: Ensembles that were not measured, and why.
        vram: Bytes that were allowed; None: no limit.
    """

    verdict: Verdict
    suggestion: dict[str, Any]
    suggested_class: Literal["EnsembleLLM", "ChatEnsemble"]
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    level: float
    systems: tuple[System, ...]
    best: str
    best_in_memory: str
    members: tuple[str, ...]
    compatible: bool
    reasons: dict[str, str]
    contests: dict[str, Contest]
    pairs: tuple[Pair, ...]
    ceilings: tuple[Ceiling, ...]
    signals: tuple[Signal, ...]
    confidence: dict[str, Any] | None
    left_out: dict[str, str]
    skipped: dict[str, str]
    vram: int | None = None

    def system(self, name: str) -> System:
        """Give a system by its name."""
        return next(one for one in self.systems if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values; what is not finite is None."""
        told: dict[str, Any] = _plain(asdict(self))
        for system, row in zip(self.systems, told["systems"], strict=True):
            row["accuracy"] = system.interval(self.level)._asdict()
            row["length"] = system.length
        return told

    def to_json(self, path: str | Path | None = None) -> str:
        """Give everything as JSON.

        Args:
            path: Also write it there.

        Returns:
            The text.

        Raises:
            ConfigError: It cannot be written there.
        """
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        if path is not None:
            save(path, text + "\n")
        return text


def save(path: str | Path, text: str) -> None:
    """Write a text where the user wants it.

    Args:
        path: An existing file is replaced.
        text: What is written, as UTF-8.

    Raises:
        ConfigError: It cannot be written there.
    """
    try:
        Path(path).expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """JSON values: named tuples as mappings, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
