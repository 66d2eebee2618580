"""``chat``: a conversation in the terminal, or one turn a line on stdin. No tools.

Stdout has the answers; thoughts, notes and errors are beside it. On a terminal an error or Ctrl-C
ends an answer, not the conversation; where stdin is a file or a pipe it ends the command, as a
script expects.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    message_chunk_to_message,
)

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.cli.console import Bars, say, say_error, stderr
from langchain_ensemble.cli.options import make
from langchain_ensemble.cli.thoughts import Thoughts
from langchain_ensemble.demo import members as demo_members
from langchain_ensemble.errors import ConfigError, EnsembleError, unknown_name

COMMANDS = {
    "/reset": "forget the conversation; the system text stays",
    "/system": "TEXT: set the system text; without TEXT: none",
    "/members": "what each member alone would answer to your last message",
    "/help": "these commands",
    "/exit": "leave, as Ctrl-D does; Ctrl-C stops an answer",
}

TOYS = (
    "no members given (-m or -c): these are the two toy members that come with the package, of two "
    "million parameters each; they know little and are often wrong"
)


def make_chat(members: Sequence[str] | None, config: Path | None, **overrides: Any) -> ChatEnsemble:
    """Make the chat model that a command line describes; nothing is loaded.

    Args:
        members: ``name=id`` or ``id``, one a member; with no file either, the members that ship
            with the package, which a line on stderr says.
        config: A configuration file.
        **overrides: Fields that were given on the line; None and ``[]`` stand for "not given".

    Returns:
        The ensemble.

    Raises:
        ConfigError: Settings that are unknown or contradict each other.
    """
    if not members and config is None:
        members = [f"{name}={folder}" for name, folder in demo_members().items()]
        _note(TOYS)
    return make(ChatEnsemble, members, config, **overrides)


def chat(llm: ChatEnsemble, system: str | None) -> None:
    """Hold a conversation until stdin ends or ``/exit``.

    Args:
        llm: The ensemble.
        system: System text of the conversation.

    Raises:
        ConfigError: Stdin is closed or no UTF-8.
        EnsembleError: An answer failed, where stdin is no terminal.
    """
    if sys.stdin is None:
        raise ConfigError("stdin is closed; chat reads what you say from it, one turn a line")
    terminal = sys.stdin.isatty()
    with llm:
        with Bars() as bars:
            llm.engine.load(bars)
        talk = Talk(llm, system)
        if terminal:
            _greet(llm)
        for line in _typed() if terminal else _piped():
            try:
                if not talk.take(line):
                    return
            except EnsembleError as error:
                if not terminal:
                    raise
                say_error(str(error))
            except KeyboardInterrupt:
                if not terminal:
                    raise
                _note("\nstopped")


class Talk:
    """What was said so far, and what a line of the user's does."""

    def __init__(self, llm: ChatEnsemble, system: str | None) -> None:
        """Begin empty.

        Args:
            llm: Who answers.
            system: System text, None or empty for none.
        """
        self._llm = llm
        self._system = system
        self._turns: list[BaseMessage] = []

    @property
    def messages(self) -> list[BaseMessage]:
        """The conversation as it is sent."""
        system = [SystemMessage(self._system)] if self._system else []
        return [*system, *self._turns]

    def take(self, line: str) -> bool:
        """Do what one line says: a command, or a message that is answered.

        Args:
            line: Without its newline.

        Returns:
            Whether the conversation goes on.

        Raises:
            ConfigError: An unknown command.
        """
        command, _, rest = line.partition(" ")
        if line.startswith("/"):
            if command not in COMMANDS:
                raise ConfigError(
                    f"{unknown_name('command', command, list(COMMANDS))}; to send a message that "
                    "begins with '/', put a space before it"
                )
            return self._command(command, rest.strip())
        if line.strip():
            self._answer(line)
        return True

    def _command(self, command: str, rest: str) -> bool:
        if command == "/system":
            self._system = rest or None
        elif command == "/reset":
            self._turns.clear()
        elif command == "/members":
            self._alone()
        elif command == "/help":
            for name, does in COMMANDS.items():
                _note(f"{name:<9} {does}")
        return command != "/exit"

    def _answer(self, text: str) -> None:
        """Answer one message; if that fails before a word was said, it was not said either."""
        self._turns.append(HumanMessage(text))
        said: list[AIMessageChunk] = []
        try:
            _show(self._llm, self.messages, said)
        finally:
            whole = _joined(said)
            if whole is None or not whole.text:
                self._turns.pop()
            else:
                self._turns.append(_plain(whole))
        if whole is None or not whole.text:
            _note("the answer is empty; your message is not kept")
        elif sys.stdout.isatty():
            _note(_summary(whole))

    def _alone(self) -> None:
        """Let each member answer the last message alone."""
        asked = [i for i, turn in enumerate(self._turns) if isinstance(turn, HumanMessage)]
        if not asked:
            _note("nothing was asked yet")
            return
        system = self.messages[: len(self.messages) - len(self._turns)]
        messages = [*system, *self._turns[: asked[-1] + 1]]
        for name in self._llm.params.names:
            say(f"{name}: ")
            _show(self._llm.solo(name), messages, [])


def _show(llm: ChatEnsemble, messages: list[BaseMessage], said: list[AIMessageChunk]) -> None:
    """Stream one answer: its text to stdout, its thoughts beside it."""
    thoughts = Thoughts(llm.params.main_name)
    stream = llm.stream(messages)
    with closing(cast(Any, stream)):
        for chunk in stream:
            said.append(chunk)
            thoughts.add(chunk)
            if chunk.text:
                thoughts.end()
                say(chunk.text)
    thoughts.end()
    say("\n")


def _joined(said: list[AIMessageChunk]) -> AIMessageChunk | None:
    return said[0] + said[1:] if said else None


def _plain(whole: AIMessageChunk) -> AIMessage:
    """Give the answer as the next turns read it: templates drop earlier thoughts anyway."""
    message = cast(AIMessage, message_chunk_to_message(whole))
    return AIMessage(message.text)


def _summary(whole: AIMessageChunk) -> str:
    """One line about an answer, for a terminal."""
    told, usage = whole.response_metadata, whole.usage_metadata
    if usage is None:
        return "no end was told"
    facts = told["ensemble"]
    agreed = ", ".join(f"{name} {share:.0%}" for name, share in facts["agreement"].items())
    return (
        f"{told['model_name']}: {told['finish_reason']}, {usage['input_tokens']} + "
        f"{usage['output_tokens']} tokens, {facts['share_fused']:.0%} of steps fused"
        + (f"; agreement: {agreed}" if agreed else "")
    )


def _greet(llm: ChatEnsemble) -> None:
    _note(f"{llm.model_name}. /help lists the commands; Ctrl-D leaves.")


def _note(text: str) -> None:
    stderr().print(text, style="dim")


def _typed() -> Iterator[str]:
    """Lines from a terminal, with the arrow keys where the platform has them."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() uses it)
    while True:
        try:
            yield input("> ")
        except EOFError:
            say("\n")
            return
        except KeyboardInterrupt:
            _note("\nCtrl-D or /exit leaves")


def _piped() -> Iterator[str]:
    """Lines of a file or a pipe."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"line {number} of stdin is not UTF-8 (byte 0x{line[error.start]:02x} at "
                f"{error.start}); convert it first"
            ) from None
