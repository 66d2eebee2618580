"""Answers what EleutherAI's evaluation harness asks, with one ensemble; no harness needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_ensemble.adapter.config import read_config
from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.decoding.records import Score
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.evaluate.harness import call_settings, moved_border, read_chat, rounds
from langchain_ensemble.llms import EnsembleLLM

Asked = tuple[str, Mapping[str, Any]]
"""A prompt (raw, or a conversation as ``harness.chat_text`` writes it) and generation settings."""


class Answering:
    """Scores and answers raw prompts and conversations, in batches.

    Attributes:
        llm: The ensemble.
        batch_size: Prompts that are answered together.
    """

    def __init__(self, llm: EnsembleLLM | ChatEnsemble, batch_size: int) -> None:
        """Keep them; nothing is loaded.

        Args:
            llm: An ``EnsembleLLM`` answers conversations too, as its ``as_chat()``.
            batch_size: Prompts that are answered together.
        """
        self.llm, self.batch_size = llm, batch_size

    def score(self, context: str, continuation: str) -> Score:
        """Score a continuation; white space at a raw context's end is scored with it.

        Args:
            context: What stands before it; may be empty.
            continuation: What is scored.

        Raises:
            ContextError: The context does not fit a member.
        """
        messages = read_chat(context)
        if messages is not None:
            return self._chat().score(messages, continuation)
        context, continuation = moved_border(context, continuation)
        return self._raw().score(continuation, context)

    def score_text(self, text: str) -> Score:
        """Score a whole text from its first token on.

        Args:
            text: Of any length.
        """
        return self._raw().score(text)

    def answers(
        self, asked: Sequence[Asked], draw_seed: Callable[[], int]
    ) -> Iterator[tuple[int, str]]:
        """Answer prompts, those of equal settings together, the longest first.

        Args:
            asked: Prompts and settings.
            draw_seed: Gives a seed where one is needed and nobody gave any.

        Yields:
            Place in ``asked``, and the answer without stop strings.

        Raises:
            ConfigError: A setting that has no meaning here; before anything is answered.
        """
        settings = [call_settings(given) for _, given in asked]
        keys = [(asked[n][0], repr(call)) for n, call in enumerate(settings)]
        drawn = [call["temperature"] > 0 for call in settings]
        numbers = [n if d else 0 for n, d in zip(rounds(keys), drawn, strict=True)]
        seeds: dict[str, int] = {}
        for batch in self._batches([context for context, _ in asked], settings, numbers):
            call = dict(settings[batch[0]])
            if call["temperature"] > 0:
                call["seed"] = self._seed(call, seeds, draw_seed) + numbers[batch[0]]
            texts = self._answered([asked[place][0] for place in batch], call)
            yield from zip(batch, texts, strict=True)

    def _batches(
        self, contexts: Sequence[str], settings: Sequence[Mapping[str, Any]], numbers: Sequence[int]
    ) -> Iterator[list[int]]:
        """Places that may run together; what is too long fails first."""
        groups: dict[tuple[str, int, bool], list[int]] = {}
        for place, context in enumerate(contexts):
            key = (repr(settings[place]), numbers[place], read_chat(context) is None)
            groups.setdefault(key, []).append(place)
        for group in groups.values():
            group.sort(key=lambda place: -len(contexts[place]))
            for at in range(0, len(group), self.batch_size):
                yield group[at : at + self.batch_size]

    def _seed(
        self, call: Mapping[str, Any], seeds: dict[str, int], draw_seed: Callable[[], int]
    ) -> int:
        """The seed of all requests with these settings: given, the ensemble's, or drawn once."""
        given = call.get("seed", self.llm.seed)
        if given is not None:
            return int(given)
        if repr(call) not in seeds:
            seeds[repr(call)] = draw_seed()
        return seeds[repr(call)]

    def _answered(self, contexts: Sequence[str], call: Mapping[str, Any]) -> list[str]:
        rest = {"n": 1, **{name: value for name, value in call.items() if name != "stop"}}
        stop = call["stop"] or None
        talks = [talk for context in contexts if (talk := read_chat(context)) is not None]
        if not talks:
            result = self._raw().generate(list(contexts), stop=stop, **rest)
            return [answers[0].text for answers in result.generations]
        said = self._chat().batch(list(talks), {"max_concurrency": len(talks)}, stop=stop, **rest)
        return [message.text for message in said]

    def _raw(self) -> EnsembleLLM:
        if isinstance(self.llm, ChatEnsemble):
            raise ConfigError(
                "a ChatEnsemble answers conversations, and this task's prompts are raw texts; "
                "add --apply_chat_template, or pass an EnsembleLLM"
            )
        return self.llm

    def _chat(self) -> ChatEnsemble:
        return self.llm.as_chat() if isinstance(self.llm, EnsembleLLM) else self.llm


def the_ensemble(
    llm: EnsembleLLM | ChatEnsemble | None,
    config: str | None,
    demo: bool,
    settings: Mapping[str, Any],
) -> EnsembleLLM | ChatEnsemble:
    """Make the ensemble that the harness's model arguments describe; nothing is loaded.

    Args:
        llm: An ensemble as it is.
        config: A configuration file.
        demo: The members of the package.
        settings: Fields of ``EnsembleLLM``; they win over the file.

    Raises:
        ConfigError: None or several of the ways to name members, or settings that cannot be.
    """
    ways = {"llm": llm, "config": config, "demo": demo or None, "members": settings.get("members")}
    named = [name for name, value in ways.items() if value is not None]
    if len(named) != 1:
        raise ConfigError(
            "members come from one of config=FILE, members=[...] and demo=True; got "
            f"{' and '.join(named) or 'none'}"
        )
    if llm is not None:
        if settings:
            raise ConfigError(f"llm= has settings of its own; also got {sorted(settings)}")
        return llm
    if demo:
        return EnsembleLLM.demo(**settings)
    return EnsembleLLM(**{**(read_config(config) if config else {}), **settings})


def prompts_together(given: int | str | None, most: int | None, concurrent: int) -> int:
    """Read the harness's batch size.

    Args:
        given: A number, ``"auto"``, or None: one.
        most: At most so many where ``"auto"``.
        concurrent: Answers that the ensemble decodes together at most.

    Raises:
        ConfigError: Anything else.
    """
    if given is None:
        return 1
    if given == "auto":
        return min(concurrent, most or concurrent)
    if not str(given).isdecimal() or int(given) < 1:
        raise ConfigError(f"batch_size={given!r}; it is a number from 1 on, or 'auto'")
    return int(given)
