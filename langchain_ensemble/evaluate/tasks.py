"""Question sets in JSON lines: how a line becomes a prompt, and what answer is right.

The papers' own prompts and questions are not in this package; :func:`paper_task` reads them from a
folder of yours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_ensemble.errors import ConfigError, unknown_name
from langchain_ensemble.evaluate.lines import json_lines
from langchain_ensemble.evaluate.metrics import Metric, check_gold, check_metric, judged

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class Question:
    """One line of a question set.

    Attributes:
        line: Its number in the file, from 1.
        prompt: What the members read.
        answers: Any of these is right.
    """

    line: int
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A question set and how it is asked.

    Attributes:
        name: For people.
        file: JSON lines, one question each.
        template: The prompt; ``{field}`` is a field of the line.
        metric: A name of ``metrics.METRICS``, or a function of prediction and right answers.
        answer: The field with the right answer, or several of which any will do.
        examples: Text before every prompt, as it is; nothing in it is a field.
        stop: Texts before which an answer ends.
        max_tokens: Decode steps at most.
        letters: The choices, where each question has the same ones.
    """

    name: str
    file: str | Path
    template: str
    metric: str | Metric = "exact_match"
    answer: str = "answer"
    examples: str = ""
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    letters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the metric's name."""
        check_metric(self.metric, f"task {self.name!r}")

    def right(self, text: str, question: Question) -> bool:
        """Say whether an answer is right.

        Raises:
            ConfigError: The metric failed.
        """
        where = f"task {self.name!r}, line {question.line}"
        return judged(self.metric, text, question.answers, where)

    def questions(self, limit: int | None = None) -> tuple[Question, ...]:
        """Read the file.

        Args:
            limit: The first so many lines; None: all.

        Returns:
            The questions in their order.

        Raises:
            ConfigError: No such file, no questions, or a line that is no question; by its number.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"task {self.name!r}: limit={limit}; at least one question is needed")
        found: list[Question] = []
        for line, row in json_lines(self.file, "questions"):
            if limit is not None and len(found) == limit:
                break
            where = f"questions {str(self.file)!r}, line {line}"
            if not isinstance(row, dict):
                raise ConfigError(f"{where} is no object but {row!r:.80}")
            found.append(Question(line, self._prompt(row, where), self._answers(row, where)))
        if not found:
            raise ConfigError(f"{str(self.file)!r} holds no questions")
        return tuple(found)

    def dev_set(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Give the questions as the dev set of ``choose`` and ``calibrate``.

        Args:
            limit: The first so many lines; None: all.
        """
        return [
            {"prompt": q.prompt, "answers": list(q.answers), "metric": self.metric}
            for q in self.questions(limit)
        ]

    def _prompt(self, row: Mapping[str, Any], where: str) -> str:
        def value(found: re.Match[str]) -> str:
            if found[1] not in row:
                raise ConfigError(f"{where} has no field {found[1]!r}; it has {', '.join(row)}")
            return str(row[found[1]])

        return self.examples + _FIELD.sub(value, self.template)

    def _answers(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        given = row.get(self.answer)
        listed = given if isinstance(given, list) else [given]
        answers = tuple(str(one) for one in listed if isinstance(one, str | int | float))
        if not answers or len(answers) < len(listed) or not all(one.strip() for one in answers):
            raise ConfigError(
                f"{where}: {self.answer!r} is {given!r}; it must be a text, or several"
            )
        check_gold(self.metric, answers, where)
        return answers


@dataclass(frozen=True)
class _Paper:
    """How the papers ask a set: UniTE's and DeePEn's scripts agree on these."""

    file: str
    metric: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    between: str = ""  # what stands between two examples, and before the question


PAPERS: dict[str, _Paper] = {
    "gsm8k": _Paper("test.jsonl", "last_number", 512, stop=("Question:",), between="\n\n\n"),
    "arc_challenge": _Paper("test.jsonl", "letter", 1, letters=("A", "B", "C", "D")),
    "piqa": _Paper("dev.jsonl", "letter", 1, letters=("A", "B")),
    "nq": _Paper("dev1600.jsonl", "exact_match", 10, stop=("\n",), between="\n\n"),
}


def paper_task(name: str, folder: str | Path, file: str | None = None) -> Task:
    """Make a task as UniTE and DeePEn ask it.

    Args:
        name: ``"gsm8k"`` (4 examples, 512 tokens, the last number), ``"arc_challenge"`` and
            ``"piqa"`` (no examples, one token, a letter), ``"nq"`` (5 examples, 10 tokens, exact
            match, to the end of the line).
        folder: Holds ``prompts.json`` (name → ``zero_shot``, or ``item`` and ``few_shot``, a path
            in the folder) and, for each name, a folder with the questions.
        file: The questions, in the name's folder; default: those of the papers.

    Returns:
        The task.

    Raises:
        ConfigError: An unknown name, or a folder without what is needed.
    """
    if name not in PAPERS:
        raise ConfigError(unknown_name("task", name, PAPERS))
    paper, root = PAPERS[name], Path(folder).expanduser()
    try:
        said = json.loads((root / "prompts.json").read_text(encoding="utf-8"))[name]
        template = said.get("item") or said["zero_shot"]
        shots = (root / said["few_shot"]).read_text(encoding="utf-8") if "few_shot" in said else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{str(root)!r} holds no prompt for {name!r} ({error!r}); it needs prompts.json with "
            "zero_shot, or item and few_shot"
        ) from error
    return Task(
        name=name,
        file=root / name / (file or paper.file),
        template=template,
        metric=paper.metric,
        examples=shots.rstrip("\n") + paper.between if shots else "",
        stop=paper.stop,
        max_tokens=paper.max_tokens,
        letters=paper.letters,
    )
