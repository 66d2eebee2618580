"""What each member reads: a raw prompt or a conversation, after a text of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from langchain_ensemble.building import Built, view_of
from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.contexts import Contexts, context_of, read_after
from langchain_ensemble.decoding.task import Task
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.requests import warn

DRAFT = -1
"""Place of the draft model, behind all members."""


class Readers:
    """How the members of one ensemble read; views of chat templates are made at first use."""

    def __init__(self) -> None:
        """Begin without views."""
        self._views: dict[int, ChatView] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop the views, which hold tokenizers."""
        with self._lock:
            self._views = {}

    def raw(
        self, built: Built, places: Sequence[int], prompt: str, contexts: Contexts
    ) -> list[MemberPrompt]:
        """A raw prompt as some members read it.

        Args:
            built: What is loaded.
            places: The members.
            prompt: The prompt; each member parses it as Hugging Face does.
            contexts: As in a request.

        Returns:
            One prompt a member.

        Raises:
            ConfigError: It does not fit a member.
        """
        members = [built.members[place] for place in places]
        return [read_after(context_of(contexts, m.name), prompt, m.prompt) for m in members]

    def task(self, built: Built, task: Task, prompts: Sequence[str], contexts: Contexts) -> Task:
        """A task with raw prompts, for its voices and its draft model; that reads what main does.

        Args:
            built: What is loaded.
            task: The request.
            prompts: The prompts.
            contexts: As in a request.

        Returns:
            The task.

        Raises:
            ConfigError: A prompt does not fit a member.
        """
        read = [self.raw(built, task.places, prompt, contexts) for prompt in prompts]
        if task.draft is not None:
            small, own = task.draft.member, context_of(contexts, built.names[0])
            task = task.drafted(lambda: [read_after(own, p, small.prompt) for p in prompts])
        return replace(task, prompts=read)

    def view(self, built: Built, place: int, contexts: Contexts = None) -> ChatView:
        """How a member reads conversations.

        Args:
            built: What is loaded.
            place: The member, or :data:`DRAFT`, which reads what main does.
            contexts: As in a request.

        Returns:
            The view.
        """
        with self._lock:
            if place not in self._views:
                pairs = [*zip(built.members, built.vocabularies, strict=True)]
                pairs += [built.draft] if built.draft else []
                self._views[place] = view_of(*pairs[place], warn)
            view = self._views[place]
        return view.reading(context_of(contexts, built.names[max(place, 0)]))
