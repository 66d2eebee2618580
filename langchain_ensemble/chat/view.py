"""How one member reads a conversation: its template, its system prompt, its tools, its thinking.

A view turns a conversation into one member's prompt: content is disarmed, arranged as the
template can show it, rendered, and tokenised once. It keeps nothing of any conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from langchain_ensemble.chat.arrange import (
    Shape,
    arrange,
    described,
    tool_schemas,
    with_ids,
    with_system,
)
from langchain_ensemble.chat.conversation import Call, ChatRequest, Conversation, Message, Tool
from langchain_ensemble.chat.disarm import Disarmer, Marks, all_strings, free_marks, map_strings
from langchain_ensemble.chat.fitting import Fitter
from langchain_ensemble.chat.recognise import shows_tools, tool_format
from langchain_ensemble.chat.template import PLAIN_STOP, Refused, Template
from langchain_ensemble.chat.thinking import NO_THINKING, ThinkingFormat, thinking_format
from langchain_ensemble.chat.tool_formats import CANONICAL, ToolFormat
from langchain_ensemble.contexts import counted
from langchain_ensemble.errors import ConfigError, ContextError
from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.vocab.vocabulary import Vocabulary, check_text

_READ_THOUGHT = "My thoughts:\n{thought}\n\nMy answer:\n"
"""How a member that has no way to think reads another's thought: in the assistant's turn, where a
reasoning model has its own. It is a part of the prompt, so no byte of it is answer; the last line
says that the answer is still to come, since a member that takes the thought for the answer votes
to end at once."""


@dataclass(frozen=True)
class _AnswerStart:
    """What comes before an answer that is no part of it.

    Attributes:
        gap: Lines that the prompt has to end with.
        space: Whether the answer's first token brings a space of its own.
    """

    gap: str = ""
    space: bool = False


class ChatView:
    """One member's way to read conversations. Immutable; safe to share between threads.

    Attributes:
        name: The member's name.
        tools: The format it calls tools in: its own, or ``CANONICAL`` where its template knows
            none.
        thinking: How it thinks, None for a model that does not.
        stop: Texts before which its answers end, for a model that has no token for that.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        vocabulary: Vocabulary,
        *,
        chat_template: str | None,
        system: str | None,
        context: int | None,
        warn: Callable[[str], None],
    ) -> None:
        """Read a member's template.

        Args:
            name: The member's name.
            tokenizer: Its transformers tokenizer.
            vocabulary: Its vocabulary, with its control tokens.
            chat_template: Its template; None: a plain default, with a warning.
            system: Its view's system prompt, which comes before the conversation's.
            context: Positions that the model has, None when unknown.
            warn: Takes warnings.

        Raises:
            ConfigError: The template is no Jinja, or the system prompt is no text.
        """
        self.name = name
        self._system, self._context, self._vocabulary = system, context, vocabulary
        self._document = ""
        self._template = Template(name, tokenizer, chat_template)
        self._disarmer = Disarmer(tokenizer, vocabulary, self._template.markers)
        self._fitter = Fitter(name, self._template)
        controls = self._disarmer.controls
        self.tools: ToolFormat = tool_format(self._template, controls)
        native = self.tools.name != CANONICAL.name
        self._shows_tools = native and shows_tools(self._template)
        self.thinking: ThinkingFormat | None = thinking_format(self._template, controls)
        self.stop: tuple[str, ...] = PLAIN_STOP if self._template.plain else ()
        self._first = _put_first(tokenizer) if self._template.plain else []
        if self._template.plain:
            warn(
                f"member {name!r} has no chat template; it reads conversations as a plain dialogue "
                "('User:', 'Assistant:'). Use an instruct model, or give Member(chat_template=...)"
            )

    def reading(self, document: str) -> ChatView:
        """The same view with a text of its own, at the end of what its system turn says.

        Args:
            document: The text, content as any; empty: none.

        Returns:
            A view; this one where there is nothing to read.
        """
        if not document:
            return self
        told = copy(self)
        told._document = document
        told._answer_start = self._answer_start  # found out once, for all documents
        return told

    def prompt(self, conversation: Conversation, request: ChatRequest) -> MemberPrompt:
        """What the member reads before it answers, or before it thinks.

        Args:
            conversation: The conversation.
            request: How it is to be answered. With thinking on, the prompt of a member that can
                think ends inside an opened thought.

        Returns:
            The prompt, tokenised once.

        Raises:
            ConfigError: Thinking is off and cannot be turned off, or the template cannot show the
                conversation.
            ContextError: The prompt does not fit the member's context.
        """
        think = request.thinking != "off"
        if not think:
            self._check_off()
        return self._prompt(conversation, request, think, None)

    def after_thought(
        self, conversation: Conversation, request: ChatRequest, thought: str
    ) -> MemberPrompt:
        """What the member reads before it answers, a thought included.

        Args:
            conversation: The conversation.
            request: How it is to be answered.
            thought: Its own thought, or another member's: without markers.

        Returns:
            The prompt, ready for the answer.

        Raises:
            ConfigError: The template cannot show the conversation.
            ContextError: The prompt does not fit the member's context.
        """
        return self._prompt(conversation, request, True, thought)

    def count(self, conversation: Conversation) -> int:
        """How many tokens a conversation has for this member, the assistant's opening included.

        Args:
            conversation: The conversation.

        Returns:
            Ids of the prompt; of the one with thinking on where it cannot be turned off.

        Raises:
            ConfigError: The template cannot show the conversation.
        """
        always = self.thinking is not None and self.thinking.how == "always"
        return len(self._ids(conversation, ChatRequest(), always, None))

    def _check_off(self) -> None:
        if self.thinking is not None and self.thinking.how == "always":
            raise ConfigError(
                f"thinking='off', but the chat template of member {self.name!r} always opens a "
                "thought and has no switch for it; use thinking='main' or 'each', or a model "
                "that can answer without thinking"
            )

    def _prompt(
        self, conversation: Conversation, request: ChatRequest, think: bool, thought: str | None
    ) -> MemberPrompt:
        ids = self._ids(conversation, request, think, thought)
        if self._context is not None and len(ids) > self._context:
            error = ContextError(
                f"the conversation has {len(ids)} tokens for member {self.name!r}, whose context "
                f"is {self._context} positions; shorten it by {len(ids) - self._context} tokens "
                "and what the answer needs",
                member=self.name,
                length=len(ids),
                limit=self._context,
            )
            raise counted(error, self._document) if self._document else error
        plain = not think or (self.thinking is None and thought is None)
        return MemberPrompt(tuple(ids), text_start=plain and self._answer_start.space)

    def _ids(
        self, conversation: Conversation, request: ChatRequest, think: bool, thought: str | None
    ) -> list[int]:
        style = CANONICAL if request.tools_by == "fused" else self.tools
        offered = () if request.call == "none" else conversation.tools
        given = list(conversation.messages)
        if self._system:
            given = [Message("system", self._system), *given]
        messages = with_ids(with_system(given, self._document))
        marks = self._marks(messages, offered, thought or "")
        messages = [self._broken(m, marks) for m in messages]
        if not think and self.thinking is not None and self.thinking.how == "word":
            messages = with_system(messages, NO_THINKING)
        tools = [self._broken_tool(t, marks) for t in offered]
        if tools and not (self._shows_tools and style is self.tools):
            messages, tools = with_system(messages, described(tools, style)), []
        shape = self._fitter.shape(messages, style, tools)
        text = self._render(messages, shape, style, tools, think)
        text += self._opened(text, think, thought, marks)
        return self._first + self._disarmer.encode(text, marks)

    def _render(
        self,
        messages: Sequence[Message],
        shape: Shape,
        style: ToolFormat,
        tools: Sequence[Tool],
        think: bool,
    ) -> str:
        settings = {} if self.thinking is None else self.thinking.settings(think)
        try:
            turns = arrange(messages, shape, style)
            return self._template.render(turns, tool_schemas(tools), **settings)
        except Refused as error:
            raise ConfigError(
                f"the chat template of member {self.name!r} refuses this conversation: {error}"
            ) from error

    def _opened(self, prompt: str, think: bool, thought: str | None, marks: Marks) -> str:
        """What follows the rendered prompt: an opened or a whole thought, or nothing."""
        if not think:
            return self._answer_start.gap
        thinking = self.thinking
        broken = "" if thought is None else self._disarmer.break_text(thought, marks)
        if thinking is None:
            return (
                self._answer_start.gap
                if thought is None
                else _READ_THOUGHT.format(thought=broken.strip())
            )
        opened = thinking.open(prompt)[len(prompt) :]
        return opened if thought is None else opened + thinking.close(broken)

    def _marks(self, messages: Sequence[Message], tools: Sequence[Tool], thought: str) -> Marks:
        texts = [thought]
        for m in messages:
            texts += [m.text, m.name or "", m.thought or ""]
            for call in m.calls:
                texts += all_strings([call.id, call.name, call.arguments])
        for tool in tools:
            texts += all_strings([tool.name, tool.description, tool.parameters])
        for text in texts:
            check_text(text)
        return free_marks(texts)

    def _broken(self, message: Message, marks: Marks) -> Message:
        return replace(
            message,
            text=self._break(message.text, marks),
            name=None if message.name is None else self._break(message.name, marks),
            thought=None if message.thought is None else self._break(message.thought, marks),
            calls=tuple(
                Call(
                    self._inner(c.id, marks),
                    self._inner(c.name, marks),
                    self._json(c.arguments, marks),
                )
                for c in message.calls
            ),
            call_id=None if message.call_id is None else self._inner(message.call_id, marks),
        )

    def _broken_tool(self, tool: Tool, marks: Marks) -> Tool:
        return Tool(
            self._inner(tool.name, marks),
            self._break(tool.description, marks),
            self._json(tool.parameters, marks),
        )

    def _break(self, text: str, marks: Marks) -> str:
        return self._disarmer.break_text(text, marks)

    def _inner(self, text: str, marks: Marks) -> str:
        """Break a name: templates compare names, so nothing is added at its edges."""
        return self._disarmer.break_text(text, marks, edges=False)

    def _json(self, value: Any, marks: Marks) -> Any:
        return map_strings(
            value, lambda text: self._break(text, marks), lambda key: self._inner(key, marks)
        )

    @cached_property
    def _answer_start(self) -> _AnswerStart:
        """What the template's own history writes between the assistant's opening and an answer."""
        asked = {"role": "user", "content": "Hi"}
        said = {"role": "assistant", "content": "Hello"}
        settings = {} if self.thinking is None else self.thinking.settings(False)
        try:
            before = self._template.render([asked], **settings)
            whole = self._template.render([asked, said], **settings)
        except Refused:
            return _AnswerStart()
        gap, found, _ = whole.removeprefix(before).partition("Hello")
        if not whole.startswith(before) or not found or gap.strip():
            return _AnswerStart()
        if "\n" in gap:
            return _AnswerStart(gap=gap)
        marks = free_marks(())
        start = self._disarmer.encode(before, marks)
        ids = self._disarmer.encode(whole, marks)
        first = ids[len(start) : len(start) + 1] if ids[: len(start)] == start else []
        spaced = self._vocabulary.decode(first).startswith(b" ")
        return _AnswerStart(space=spaced and self._vocabulary.dummy_prefix)


def _put_first(tokenizer: Any) -> list[int]:
    """The ids that a tokenizer itself puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    return list(whole[: next((n for n in starts if whole[n : n + len(bare)] == bare), 0)])
