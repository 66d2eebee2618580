"""``python -m langchain_ensemble.demo``: a chain, RAG, an agent and structured output. Offline.

What the ensemble said, and what each member alone would have said. ``--hub`` does the same with two
instruct models of the Hub.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Console

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.cli.console import BAD, GOOD, USAGE, Bars, say_error
from langchain_ensemble.cli.streams import our_notices
from langchain_ensemble.demo import hub, scenes
from langchain_ensemble.demo import members as embedded
from langchain_ensemble.demo.stage import EMPTY, Stage
from langchain_ensemble.errors import ConfigError, EnsembleError, UnfinishedError

MAX_TOKENS = 80
TOYS = (
    "Two TOY members of two million parameters each, {names}, with different tokenizers, chat "
    "templates and architectures. They show every path of the package and know next to nothing; "
    "`--hub` shows the same with small real models. Nothing here is scripted."
)
REAL = "Two small instruct models of the Hub, {names}. Nothing here is scripted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Show everything.

    Args:
        arguments: In place of the command line's.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m langchain_ensemble.demo", description=__doc__)
    parser.add_argument("questions", nargs="*", help="your own questions in place of the tour")
    parser.add_argument("--hub", action="store_true", help="two small models of the Hub")
    parser.add_argument("--device", help='"cpu", "auto", "cuda:0" …; default: cpu, --hub auto')
    parser.add_argument("--fusion", default="deepen", help='"deepen" (default), "unite", …')
    given = parser.parse_args(arguments)
    stage = Stage(Console(highlight=False))
    try:
        with (
            our_notices(),
            ChatEnsemble(
                members=hub.MEMBERS if given.hub else embedded(),
                fusion=given.fusion,
                device=given.device or ("auto" if given.hub else "cpu"),
                max_tokens=MAX_TOKENS,
            ) as chat,
        ):
            with Bars() as bars:
                chat.engine.load(bars)
            names = " and ".join(chat.params.names)
            stage.note((REAL if given.hub else TOYS).format(names=names))
            stage.note(f"together = {chat.model_name}")
            tour(chat, stage, given.questions)
    except ConfigError as error:
        say_error(str(error))
        return USAGE
    except EnsembleError as error:
        say_error(str(error))
        return BAD
    return GOOD


def tour(chat: ChatEnsemble, stage: Stage, questions: Sequence[str] = ()) -> None:
    """Show every part, or answer questions.

    Args:
        chat: The ensemble.
        stage: Where it is shown.
        questions: In place of the parts.
    """
    for question in questions:
        ask(chat, stage, question)
    if not questions:
        for part in (show_chain, show_rag, show_agent, show_structured):
            part(chat, stage)


def everybody(chat: ChatEnsemble) -> dict[str, ChatEnsemble]:
    """The ensemble, and each member alone over the same weights, by what they are called."""
    return {"together": chat} | {name: chat.solo(name) for name in chat.params.names}


def ask(chat: ChatEnsemble, stage: Stage, question: str) -> None:
    """Ask everybody one question."""
    stage.ask(question)
    for name, who in everybody(chat).items():
        stage.show(name, (chunk.text for chunk in who.stream(question)))


def show_chain(chat: ChatEnsemble, stage: Stage) -> None:
    """``prompt | chat | parser``."""
    stage.title("1. A chain: prompt | chat | parser", "Free generation; no grammar.")
    stage.ask("What is the capital of Japan?")
    for name, who in everybody(chat).items():
        stage.show(name, scenes.chain(who).stream({"country": "Japan"}))


def show_rag(chat: ChatEnsemble, stage: Stage) -> None:
    """Answers out of retrieved texts."""
    stage.title(
        "2. RAG: retriever | prompt | chat | parser",
        "A few country profiles in an in-memory vector store. Embeddings are hashed words, a toy "
        "that needs no download. Free generation; no grammar.",
    )
    found = scenes.retriever()
    for question in ("When was Tamba Bridge built?", "How old is Linh?"):
        stage.ask(question)
        stage.line("found", ", ".join(str(document.id) for document in found.invoke(question)))
        for name, who in everybody(chat).items():
            stage.show(name, scenes.rag(who, found).stream(question))
    stage.note("The last sentence of each profile is made up. Without the profiles:")
    stage.show("together", (chunk.text for chunk in chat.stream(question)))


def show_agent(chat: ChatEnsemble, stage: Stage) -> None:
    """An agent that calls a tool and answers."""
    stage.title(
        "3. An agent: create_agent(chat, [calculator, country_fact])",
        "Whether to call is free; the call itself is decoded by the main member under the grammar "
        "of the tools, so it is always one of them with arguments that fit; the answer is free.",
    )
    question = "What is 12 * 34?"
    stage.ask(question)
    for name, who in everybody(chat).items():
        play(stage, name, scenes.agent(who), question)


def play(stage: Stage, name: str, agent: Any, question: str) -> None:
    """Show what an agent does."""
    kind = ""
    for kind, events in groupby(scenes.steps(agent, question), key=itemgetter(0)):
        texts = (text for _, text in events)
        if kind == "text":
            stage.show(name, texts)
        for text in texts:  # of calls and results
            stage.line(name if kind == "call" else "tool", text, "green")
    if not kind:
        stage.line(name, EMPTY, "dim")


def show_structured(chat: ChatEnsemble, stage: Stage) -> None:
    """Structured output into a Pydantic class."""
    stage.title(
        "4. Structured output: chat.with_structured_output(Note)",
        "The grammar of the JSON schema holds for every token, so the form is right whoever "
        "speaks; what stands in it is free.",
    )
    text = "name is Bova, city is Namche, year is 1934"
    stage.ask(text)
    for name, who in everybody(chat).items():
        try:
            said = repr(scenes.structured(who).invoke({"text": text}))
        except UnfinishedError as error:
            said = f"nothing: {error}"
        stage.line(name, said)


if __name__ == "__main__":
    sys.exit(main())
