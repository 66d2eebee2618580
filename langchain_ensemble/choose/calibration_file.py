"""The calibration file: weights and a confidence map, and exactly whose they are.

JSON. Weights that were learned for some members, in one fusion, mean nothing for others, so the
file says whom it belongs to, and whoever reads it says who they are: the first difference is an
error with both values. Written whole or not at all. Standard library only; no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from langchain_ensemble.errors import ConfigError

FORMAT = 1
"""Version of the file."""

CURE = "calibrate these members again, or give weights= in numbers"


@dataclass(frozen=True)
class Calibration:
    """What was learned on a dev set, and whose it is.

    Attributes:
        belongs_to: Whose it is, as :func:`~langchain_ensemble.choose.belonging.belongs_to` says.
        weights: Name → weight; sum 1.
        confidence: ``{"features": [...], "coefficients": [...], "intercept": x}``, or None.
        measured: What the report measured, as JSON.
        path: Where it was read.
        digest: Hash of the file's bytes.
    """

    belongs_to: Mapping[str, Any]
    weights: Mapping[str, float]
    confidence: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    digest: str = ""

    def check(self, owner: Mapping[str, Any]) -> None:
        """Refuse to be used by anybody else.

        Args:
            owner: Who asks: what is known of them, in the form of ``belongs_to``; what is not
                known yet is left out and not compared.

        Raises:
            ConfigError: The first thing that differs, with both values.
        """
        for what, theirs, ours in differences(self.belongs_to, owner):
            raise ConfigError(
                f"calibration {self.path!r} belongs to another ensemble: {what} is {ours!r} here, "
                f"{theirs!r} in the file; {CURE}"
            )


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """What differs between a file's owner and another, the coarsest first.

    Args:
        theirs: The file's.
        ours: The other's; only what it names is compared.

    Yields:
        A name of what differs, the file's value, the other's.
    """
    for key, mine in ours.items():
        his = theirs.get(key)
        if key == "members" and isinstance(mine, Mapping) and isinstance(his, Mapping):
            if sorted(his) != sorted(mine):
                yield "the list of members", sorted(his), sorted(mine)
                continue
            for name, facts in mine.items():
                for fact, value in facts.items():
                    if his[name].get(fact) != value:
                        yield f"{fact} of member {name!r}", his[name].get(fact), value
        elif his != mine:
            yield key, his, mine


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration; a file that has not changed is read once.

    Args:
        path: Where it is.

    Returns:
        The calibration; whose it is has yet to be checked.

    Raises:
        ConfigError: No such file, damaged, or of another version.
    """
    place = Path(path).expanduser()
    try:
        stamp = place.stat()
        return _read(str(place), stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
    except OSError as error:
        raise ConfigError(
            f"cannot read the calibration {str(place)!r}: {error.strerror or error}; "
            "llm.calibrate(dev_set, file=...) writes one"
        ) from error


@lru_cache(maxsize=64)
def _read(path: str, *_: int) -> Calibration:
    data = Path(path).read_bytes()
    try:
        content = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"the calibration {path!r} is damaged ({error}); calibrate again"
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ConfigError(
            f"the calibration {path!r} has format {version!r}; this version of the package reads "
            f"format {FORMAT}: calibrate again"
        )
    weights, belongs_to = content.get("weights"), content.get("belongs_to")
    _check_weights(path, weights, belongs_to)
    confidence = content.get("confidence")
    _check_confidence(path, confidence)
    return Calibration(
        belongs_to=belongs_to,
        weights=weights,
        confidence=confidence,
        measured=content.get("measured") or {},
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
    )


def _check_weights(path: str, weights: Any, belongs_to: Any) -> None:
    members = belongs_to.get("members") if isinstance(belongs_to, dict) else None
    good = (
        isinstance(weights, dict)
        and isinstance(members, dict)
        and all(isinstance(facts, dict) for facts in members.values())
        and sorted(weights) == sorted(members)
        and all(_is_number(w) and w >= 0 for w in weights.values())
        and abs(math.fsum(weights.values()) - 1) <= 1e-6
    )
    if not good:
        raise ConfigError(
            f"the calibration {path!r} has weights {weights!r} for members "
            f"{sorted(members) if isinstance(members, dict) else members!r}; it needs one number "
            "of at least 0 for each, sum 1: calibrate again"
        )


def _check_confidence(path: str, confidence: Any) -> None:
    if confidence is None:
        return
    good = isinstance(confidence, dict) and _is_number(confidence.get("intercept"))
    lists = [confidence.get(name) for name in ("features", "coefficients")] if good else []
    good = good and all(isinstance(one, list) for one in lists) and len({*map(len, lists)}) == 1
    good = good and all(isinstance(f, str) for f in lists[0]) and all(map(_is_number, lists[1]))
    if not good:
        raise ConfigError(
            f"the calibration {path!r} has confidence {confidence!r}; it needs features, as many "
            "coefficients and an intercept: calibrate again"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write a calibration whole or not at all; an existing file is replaced.

    Args:
        path: Where to.
        calibration: What is written.

    Raises:
        ConfigError: It cannot be written there.
    """
    place = Path(path).expanduser()
    text = json.dumps(
        {
            "format": FORMAT,
            "belongs_to": calibration.belongs_to,
            "weights": dict(calibration.weights),
            "confidence": calibration.confidence,
            "measured": calibration.measured,
        },
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )
    fresh = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        with fresh.open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(place)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(
            f"cannot write the calibration {str(place)!r}: {error.strerror or error}"
        ) from error


def early_facts(
    names: Sequence[str], main: str, fusion: str, open_boundaries: str
) -> dict[str, Any]:
    """What is known of an ensemble before anything is loaded.

    Args:
        names: The members' names.
        main: Main's name.
        fusion: The fusion's name.
        open_boundaries: As in :class:`~langchain_ensemble.params.EnsembleParams`.

    Returns:
        A part of what ``belongs_to`` says.
    """
    return {
        "members": {name: {} for name in names},
        "main": main,
        "fusion": fusion,
        "open_boundaries": open_boundaries,
    }
