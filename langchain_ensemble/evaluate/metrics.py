r"""Whether an answer is right: pure functions of two strings, standard library only.

Each takes the prediction and the gold answer, or several gold answers of which any will do, and
gives True or False. An empty prediction is always wrong.

Normalisation, as in SQuAD: lower case, ASCII punctuation removed, the words a, an and the removed,
white space joined. A text of which nothing is left ("The The", "?") is compared by its lower case
with white space joined instead, so that it equals itself and nothing else.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType

from langchain_ensemble.errors import ConfigError, unknown_name

Metric = Callable[[str, str | Sequence[str]], bool]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]]) (?P<sign> [-+\u2212] ) )?            # after a digit or a bracket it is minus
    [$\u00a3\u20ac]?
    (?: (?<![\w)\]]) (?P<inner> [-\u2212] ) )?            # $-5
    (?: (?P<digits>
            (?<![0-9]) [0-9]{1,3} (?: , [0-9]{3} )+ (?![0-9])   # 1,234,567
            | [0-9]+ )
        (?P<decimals> \.[0-9]+ )?
      | (?<![\w.]) (?P<small> \.[0-9]+ )                        # .5, but not ...5
    )
    """,
    re.VERBOSE,
)
_LETTER = re.compile(r"[\s(\[\"'*]*([A-Z])(?=['\"]?(?:\s*$|\s*\n|[^\w\s'\"]))")
_LATEX_COMMA = re.compile(r"(?<=[0-9]),?(?:\{,\}|\\[,! ])(?=[0-9])")


def normalise(text: str) -> str:
    """Give a text's form for comparison: SQuAD's, or its lower case where nothing is left."""
    lower = text.lower()
    kept = _ARTICLES.sub(" ", lower.translate(_PUNCTUATION))
    return " ".join(kept.split()) or " ".join(lower.split())


def exact_match(prediction: str, gold: str | Sequence[str]) -> bool:
    """Say whether the prediction equals a gold answer after :func:`normalise`."""
    said = normalise(prediction)
    return bool(said) and any(said == normalise(alias) for alias in _aliases(gold))


def contains(prediction: str, gold: str | Sequence[str]) -> bool:
    """Say whether a gold answer stands in the prediction as whole words, both normalised."""
    said = f" {normalise(prediction)} "
    return any(f" {want} " in said for alias in _aliases(gold) if (want := normalise(alias)))


def letter(prediction: str, gold: str | Sequence[str]) -> bool:
    """Say whether the prediction begins with the gold letter.

    White space, opening brackets, quotes and asterisks before it are skipped; behind it stands
    the end, a line break or punctuation, so that " B", "(B)" and "B: it melts" are B, but "Answer",
    "A dog" and "B2" are no letter at all. Upper case, as the question names its choices.
    """
    wanted = [alias.strip() for alias in _aliases(gold)]
    found = _LETTER.match(prediction)
    return found is not None and found[1] in wanted


def last_number(prediction: str, gold: str | Sequence[str]) -> bool:
    """Say whether the last number of the prediction equals the last one of the gold answer.

    Raises:
        ConfigError: A gold answer without a number.
    """
    said = number(prediction)
    wanted = [number(alias) for alias in _aliases(gold)]
    if None in wanted:
        raise ConfigError(f"gold answer {gold!r} holds no number; another metric is needed")
    return said is not None and said in wanted


def number(text: str) -> Decimal | None:
    r"""Give the last number of a text, None where there is none.

    "1,234,567" is one number, "10,20" are two; "3 - 5" and "3-5" end in 5, "= -5" and "-$5" in -5;
    "4." is 4, ".5" is 0.5, "$4.00" equals 4; "50%" is 50; LaTeX's ``{,}``, ``\,`` and ``\!`` inside
    a number are read.
    """
    last = None
    for found in _NUMBER.finditer(_LATEX_COMMA.sub(",", text).replace(r"\$", "$")):
        last = found
    if last is None:
        return None
    value = Decimal(last["small"] or last["digits"].replace(",", "") + (last["decimals"] or ""))
    minus = any(sign not in (None, "+") for sign in (last["sign"], last["inner"]))
    return -value if minus else value


def _aliases(gold: str | Sequence[str]) -> Sequence[str]:
    """The answers of which any will do.

    Raises:
        ConfigError: None at all.
    """
    aliases = [gold] if isinstance(gold, str) else gold
    if not aliases or not all(alias.strip() for alias in aliases):
        raise ConfigError(f"gold answer {gold!r} is empty; every question needs one")
    return aliases


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "exact_match": exact_match,
        "contains": contains,
        "letter": letter,
        "last_number": last_number,
    }
)
"""By name, as a task and the command line say them."""


def judged(metric: str | Metric, prediction: str, gold: Sequence[str], where: str) -> bool:
    """Say whether an answer is right, by a metric's name or by a function of the user's.

    Args:
        metric: A name of :data:`METRICS`, or a function of prediction and right answers.
        prediction: The answer.
        gold: Any of these is right.
        where: Which question that is, for an error.

    Raises:
        ConfigError: The function raised something, or said neither True nor False.
    """
    function = METRICS[metric] if isinstance(metric, str) else metric
    try:
        said = function(prediction, gold)
        if said not in (True, False):
            raise TypeError(f"it gave {said!r:.80}, and a metric says True or False")
    except Exception as error:  # whatever a user's function may raise
        called = metric if isinstance(metric, str) else getattr(metric, "__qualname__", metric)
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"metric {called!r} failed at {where}, answer {prediction!r:.80}: {why}"
        ) from error
    return bool(said)


def check_metric(metric: object, where: str) -> None:
    """Refuse what is neither a function nor a name of :data:`METRICS`.

    Args:
        metric: What was given.
        where: Who has it, for the error.

    Raises:
        ConfigError: It is neither.
    """
    if not callable(metric) and not (isinstance(metric, str) and metric in METRICS):
        raise ConfigError(f"{where}: {unknown_name('metric', metric, METRICS)}")


def check_gold(metric: object, answers: Sequence[str], where: str) -> None:
    """Refuse right answers that a named metric cannot compare anything with.

    Args:
        metric: A name of :data:`METRICS`; functions are not asked.
        answers: The right ones.
        where: Which question that is, for the error.

    Raises:
        ConfigError: Nothing can equal them.
    """
    if isinstance(metric, str):
        try:
            METRICS[metric]("", answers)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
