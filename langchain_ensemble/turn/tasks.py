"""The decoding tasks that a turn is made of: what each phase may say, and who says it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_ensemble.chat.conversation import ChatRequest, Conversation, Tool
from langchain_ensemble.chat.splitter import Splitter
from langchain_ensemble.chat.tool_formats import CANONICAL
from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.constraints.compile import compile_all
from langchain_ensemble.constraints.grammar import Grammar, GrammarVocabulary, OneOf, Triggered
from langchain_ensemble.decoding.task import Held, Opening, Task
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.vocab.vocabulary import Vocabulary


class TurnTasks:
    """Makes the task of each phase of one request; runs nothing."""

    def __init__(
        self,
        task: Task,
        views: Sequence[ChatView],
        vocabularies: Sequence[Vocabulary],
        conversation: Conversation,
        chat: ChatRequest,
        small: ChatView | None = None,
    ) -> None:
        """Keep the request; main is first everywhere.

        Args:
            task: The request's task, without prompts.
            views: How each voice reads conversations.
            vocabularies: One a voice.
            conversation: What is answered.
            chat: How.
            small: How the draft model reads conversations, if there is one.
        """
        talking = tuple(replace(voice, turns=True) for voice in task.voices)
        self._task = replace(task, voices=talking)
        self.views, self._vocabularies = views, vocabularies
        self._conversation, self._chat = conversation, chat
        self._small, self._started = small, time.monotonic()
        self.tools = _callable(conversation, chat)
        self.fused_calls = bool(self.tools) and chat.tools_by == "fused"
        self.must_call = bool(self.tools) and chat.call == "required"

    @property
    def answers(self) -> int:
        """How many answers are wanted."""
        return self._task.request.n

    @property
    def timeout(self) -> float | None:
        """Seconds that the request may take."""
        return self._task.request.timeout

    def thinkers(self) -> list[int]:
        """Places of the voices that think before they answer.

        Raises:
            ConfigError: ``thinking=`` asks members to think that cannot.
        """
        if self._chat.thinking == "off":
            return []
        asked = self.views if self._chat.thinking == "each" else self.views[:1]
        able = [place for place, view in enumerate(asked) if view.thinking is not None]
        if not able:
            names = ", ".join(repr(view.name) for view in asked)
            raise ConfigError(
                f"thinking={self._chat.thinking!r}, but the chat template of {names} knows no "
                "thinking; use thinking='off', or a reasoning model"
            )
        return able

    def think(self, place: int, answer: int) -> Task:
        """One voice's private thinking, raw and alone, up to its closing marker."""
        thinking = self.views[place].thinking
        assert thinking is not None
        task = self._solo(
            place,
            self.views[place].prompt(self._conversation, self._chat),
            max_tokens=self._chat.thinking_tokens,
            seed=self._seed(answer, 1 + place),
            stop=(thinking.closing,),
        )
        return replace(task, spelled=thinking.spelled, keep=True)

    def prompts(self, thoughts: Mapping[int, str] | None = None) -> list[MemberPrompt]:
        """What every voice reads before the answer.

        Args:
            thoughts: By place; None where nobody thinks. Where only main thinks, all read it.

        Returns:
            One prompt a voice.
        """
        if thoughts is None:
            return [view.prompt(self._conversation, self._chat) for view in self.views]
        if self._chat.thinking == "main":
            thoughts = dict.fromkeys(range(len(self.views)), thoughts[0])
        return [
            view.after_thought(self._conversation, self._chat, thoughts[place])
            if place in thoughts
            else view.prompt(self._conversation, self._chat)
            for place, view in enumerate(self.views)
        ]

    def answer(
        self,
        answers: Sequence[int],
        prompts: Sequence[MemberPrompt],
        held: list[Held | None] | None,
    ) -> Task:
        """The fused part of some answers to one conversation."""
        request = self._task.request
        update: dict[str, Any] = {"timeout": self._seconds_left(), "n": len(answers)}
        if answers[0] > 0:
            update["seed"] = self._seed(answers[0], 0)
        if self._chat.grammar is None and not self.must_call:
            update["stop"] = tuple(dict.fromkeys((*request.stop, *self._own_stops())))
        opening = None if self.fused_calls or not self.tools else self._opening()
        grammar = self._text_grammar()
        tables = [grammar_vocabulary(v) for v in self._vocabularies]
        task = self._task
        if self._small is not None:
            small, told = self._small, (self._conversation, self._chat)
            task = task.drafted(lambda: [small.prompt(*told)])
        return replace(
            task,
            prompts=[prompts],
            request=request.model_copy(update=update),
            grammar=None if grammar is None else compile_all(grammar, tables),
            opening=opening,
            held=held,
            keep=opening is not None,
        )

    def whole(self) -> Task:
        """The request as one task that reads and says at least what all its phases do."""
        request = self._task.request
        thought = self._chat.thinking_tokens if self.thinkers() else 0
        said = None if request.max_tokens is None else request.max_tokens + thought
        request = request.model_copy(update={"max_tokens": said})
        return replace(self._task, prompts=[self.prompts()], request=request)

    def text_splitter(self) -> Splitter:
        """Reads one answer's fused text."""
        held = self._chat.grammar is not None  # a call stands in its place, not in its strings
        opening = CANONICAL.opening if self.fused_calls else None
        return Splitter(opening, CANONICAL.reader(), first=held)

    def call(
        self,
        answer: int,
        prompt: MemberPrompt,
        held: Held | None,
        *,
        opened: bool,
        steps: int | None,
    ) -> Task:
        """Main's calls in its own format, alone and under its grammar.

        Args:
            answer: Number of the answer.
            prompt: What main has read; with ``opened`` the opening is its end.
            held: A cache that begins like the prompt.
            opened: Whether the call was opened already.
            steps: Decode steps that are left.
        """
        style = self.views[0].tools
        make = style.body if opened else style.whole
        grammar = make(self.tools, parallel=self._chat.parallel)
        table = grammar_vocabulary(self._vocabularies[0], style.spelled)
        seed = self._seed(answer, -1 if opened else 0)
        return replace(
            self._solo(0, prompt, max_tokens=steps, seed=seed, stop=()),
            grammar=compile_all(grammar, [table]),
            spelled=style.spelled,
            held=None if held is None else [held],
        )

    def call_splitter(self, *, opened: bool) -> Splitter:
        """Reads main's calls."""
        style = self.views[0].tools
        return Splitter(style.opening, style.reader(), inside=opened)

    def steps_left(self, taken: int) -> int | None:
        """Decode steps that are left of ``max_tokens``; None: no limit."""
        limit = self._task.request.max_tokens
        return None if limit is None else max(0, limit - taken)

    def _solo(
        self,
        place: int,
        prompt: MemberPrompt,
        *,
        max_tokens: int | None,
        seed: int | None,
        stop: tuple[str, ...],
    ) -> Task:
        update = {
            "n": 1,
            "max_tokens": max_tokens,
            "seed": seed,
            "stop": stop,
            "timeout": self._seconds_left(),
        }
        return replace(
            self._task,
            voices=(self._task.voices[place].alone(),),
            weights=(1.0,),
            places=(0,),
            num_members=1,
            fuser=None,
            key_bytes=(),
            prompts=[[prompt]],
            draft=None,
            rating=None,
            online=False,
            request=self._task.request.model_copy(update=update),
        )

    def _own_stops(self) -> tuple[str, ...]:
        """Texts that end an answer in main's own format."""
        main = self.views[0]
        thinks = main.thinking is not None and self._chat.thinking != "off"
        return (*main.stop, *(main.thinking.stop if thinks and main.thinking else ()))

    def _opening(self) -> Opening:
        style = self.views[0].tools
        if style.opening_ids:
            return Opening(ids=style.opening_ids)
        return Opening(literal=tuple(self._vocabularies[0].encode(style.opening).ids))

    def _text_grammar(self) -> Grammar | None:
        """What the fused text must obey: the caller's grammar, or the common form of calls."""
        if not self.fused_calls:
            return self._chat.grammar
        parallel = self._chat.parallel
        if self.must_call:
            return CANONICAL.whole(self.tools, parallel=parallel)
        if self._chat.grammar is not None:
            return OneOf((self._chat.grammar, CANONICAL.whole(self.tools, parallel=parallel)))
        return Triggered(CANONICAL.opening, CANONICAL.body(self.tools, parallel=parallel))

    def _seed(self, answer: int, phase: int) -> int | None:
        """A seed of its own for every answer and phase; the request's own for a plain answer."""
        seed = self._task.request.seed
        return None if seed is None else (seed + 0x9E3779B97F4A7C15 * answer + 7919 * phase) % 2**63

    def _seconds_left(self) -> float | None:
        limit = self._task.request.timeout
        return None if limit is None else max(1e-3, limit - (time.monotonic() - self._started))


def grammar_vocabulary(
    vocabulary: Vocabulary, spelled: Mapping[int, bytes] | None = None
) -> GrammarVocabulary:
    """What a grammar engine has to know of a vocabulary.

    Args:
        vocabulary: The vocabulary; its control ids are never legal,
        spelled: but for these, with the bytes that they stand for.

    Returns:
        The table.
    """
    table = [
        None if role is not None else data
        for data, role in zip(vocabulary.token_bytes, vocabulary.token_roles, strict=True)
    ]
    identity = f"{vocabulary.content_hash}:{vocabulary.width}"
    for token, data in sorted((spelled or {}).items()):
        table[token] = data
        identity += f":{token}={data.hex()}"
    return GrammarVocabulary(tuple(table), identity)


def _callable(conversation: Conversation, chat: ChatRequest) -> tuple[Tool, ...]:
    """The tools that may be called."""
    if chat.call == "none":
        return ()
    return tuple(
        tool for tool in conversation.tools if not chat.callable or tool.name in chat.callable
    )
