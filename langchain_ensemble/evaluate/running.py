"""Asks an ensemble every question of a task, and counts the right answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose.stats import Interval, clopper_pearson
from langchain_ensemble.errors import (
    AbstainedError,
    ConfigError,
    DeadlineError,
    EnsembleWarning,
    UnfinishedError,
)
from langchain_ensemble.evaluate.tasks import Question, Task
from langchain_ensemble.llms import EnsembleLLM

Model = EnsembleLLM | ChatEnsemble
Letters = Literal["generate", "score"]
Progress = Callable[[str, int, int], None]

OF_ONE_QUESTION = (ConfigError, DeadlineError, AbstainedError, UnfinishedError)
"""What can be wrong with one question; anything else ends the run."""


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        line: Its number in the file.
        prompt: What the members read.
        answers: Any of these is right.
        text: What was said; empty where nothing was.
        right: Whether that is right.
        error: Why nothing was said, None: something was.
    """

    line: int
    prompt: str
    answers: tuple[str, ...]
    text: str
    right: bool
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """A task's outcome.

    Attributes:
        task: Its name.
        model: The ensemble's name.
        letters: How letters were chosen; None: the task has none.
        items: One a question, in order; those with an error count as wrong.
    """

    task: str
    model: str
    letters: Letters | None
    items: tuple[Outcome, ...]

    @property
    def accuracy(self) -> float:
        """Share of questions answered right."""
        return sum(item.right for item in self.items) / len(self.items)

    @property
    def interval(self) -> Interval:
        """The accuracy with its exact 95 % bounds (Clopper and Pearson)."""
        low, high = clopper_pearson(sum(item.right for item in self.items), len(self.items))
        return Interval(self.accuracy, low, high)

    @property
    def errors(self) -> tuple[Outcome, ...]:
        """The questions that could not be answered."""
        return tuple(item for item in self.items if item.error is not None)

    def write(self, path: str | Path) -> None:
        """Write the items as JSON lines.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            ConfigError: It cannot be written there.
        """
        said = {"task": self.task, "model": self.model}
        lines = [json.dumps({**said, **asdict(i)}, ensure_ascii=False) for i in self.items]
        try:
            Path(path).expanduser().write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {str(path)!r}: {error}") from error


def evaluate(
    llm: Model,
    task: Task,
    *,
    limit: int | None = None,
    letters: Letters = "generate",
    batch: int = 16,
    on_progress: Progress | None = None,
) -> Result:
    """Ask every question of a task.

    A ``ChatEnsemble`` gets each prompt as one user's message; an ``EnsembleLLM`` goes on with it.
    Sampling settings are the ensemble's own, greedy unless it says otherwise.

    Args:
        llm: The ensemble; loaded if it is not.
        task: The questions.
        limit: The first so many.
        letters: For tasks with letters: ``"generate"`` reads what is said, as the papers do (one
            token); ``"score"`` takes the letter that is likeliest as the answer's beginning, which
            also works where main has no token of a space and a letter.
        batch: Questions that are answered together.
        on_progress: Called with (task, done, total).

    Returns:
        The outcome of every question. One that does not fit or was not answered in time is an
        outcome with an error, counts as wrong, and a warning says how many there are.

    Raises:
        ConfigError: Questions that cannot be read, or settings that cannot be.
        MemberError: A member cannot be loaded or run.
    """
    if letters not in ("generate", "score") or batch < 1:
        raise ConfigError(
            f'letters={letters!r}, batch={batch}; letters is "generate" or "score", batch at '
            "least 1"
        )
    questions = task.questions(limit)
    _warn_of_letters(task, questions)
    scored = bool(task.letters) and letters == "score"
    llm.request(max_tokens=task.max_tokens)  # what is wrong with every question is said at once
    llm.load()
    outcomes: list[Outcome] = []
    for start in range(0, len(questions), batch):
        asked = questions[start : start + batch]
        outcomes += (
            [_outcome(task, q, partial(_likeliest, llm, task, q)) for q in asked]
            if scored
            else _said(llm, task, asked)
        )
        if on_progress is not None:
            on_progress(task.name, len(outcomes), len(questions))
    result = Result(task.name, llm.model_name, letters if task.letters else None, tuple(outcomes))
    if result.errors:
        warnings.warn(
            f"{task.name}: {len(result.errors)} of {len(questions)} questions were not answered "
            f"and count as wrong; line {result.errors[0].line}: {result.errors[0].error}",
            EnsembleWarning,
            stacklevel=2,
        )
    return result


def _said(llm: Model, task: Task, asked: Sequence[Question]) -> list[Outcome]:
    """Answer some questions together; one by one where that fails, to know whose fault it is."""
    try:
        texts = _answers(llm, task, asked)
    except OF_ONE_QUESTION:
        return [_outcome(task, q, partial(_answer, llm, task, q)) for q in asked]
    return [_judged(task, q, text) for q, text in zip(asked, texts, strict=True)]


def _outcome(task: Task, question: Question, answer: Callable[[], str]) -> Outcome:
    try:
        text = answer()
    except OF_ONE_QUESTION as error:
        why = f"{type(error).__name__}: {error}"
        return Outcome(question.line, question.prompt, question.answers, "", False, why)
    return _judged(task, question, text)


def _judged(task: Task, question: Question, text: str) -> Outcome:
    right = task.right(text, question)
    return Outcome(question.line, question.prompt, question.answers, text, right)


def _answer(llm: Model, task: Task, question: Question) -> str:
    return _answers(llm, task, [question])[0]


def _answers(llm: Model, task: Task, asked: Sequence[Question]) -> list[str]:
    call: dict[str, Any] = {"max_tokens": task.max_tokens, "stop": list(task.stop) or None, "n": 1}
    prompts = [question.prompt for question in asked]
    if isinstance(llm, EnsembleLLM):
        return [answers[0].text for answers in llm.generate(prompts, **call).generations]
    said = llm.batch(list(prompts), {"max_concurrency": len(prompts)}, **call)
    return [message.text for message in said]


def _likeliest(llm: Model, task: Task, question: Question) -> str:
    """The letter with the highest log-likelihood, the first of equals."""
    prompt = question.prompt
    if isinstance(llm, ChatEnsemble):
        scores = [llm.score(prompt, letter).logprob for letter in task.letters]
    else:
        kept = prompt.rstrip()
        lead = prompt[len(kept) :] or " "
        scores = [llm.score(lead + letter, kept).logprob for letter in task.letters]
    return task.letters[scores.index(max(scores))]


def _warn_of_letters(task: Task, questions: Sequence[Question]) -> None:
    """Say how many questions no letter can answer right."""
    if not task.letters:
        return
    lost = [q for q in questions if not set(q.answers) & set(task.letters)]
    if lost:
        warnings.warn(
            f"{task.name}: the right answer of {len(lost)} of {len(questions)} questions is none "
            f"of {', '.join(task.letters)} (line {lost[0].line}: {lost[0].answers[0]!r}); they "
            "count as wrong, as in the papers",
            EnsembleWarning,
            stacklevel=3,
        )
