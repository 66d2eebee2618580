"""What the demo shows, as a LangChain user would write it; nothing is scripted.

Every function takes the chat model, real or a member alone, so that all of them do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever
from pydantic import BaseModel

from langchain_ensemble.demo.profiles import profiles
from langchain_ensemble.demo.retrieval import HashedWords
from langchain_ensemble.demo.tools import calculator, country_fact
from langchain_ensemble.errors import ConfigError

if TYPE_CHECKING:
    from langchain_ensemble.chat_models import ChatEnsemble

RAG_PROMPT = ChatPromptTemplate.from_template(
    "Use the context to answer.\n\nContext:\n{context}\n\nQuestion: {question}"
)


AGENT_STEPS = 8
"""Of an agent at most: a toy that cannot read a result would call for ever."""


class Note(BaseModel):
    """What is told of somebody."""

    name: str
    city: str
    year: int


def chain(chat: ChatEnsemble) -> Runnable[Any, str]:
    """``prompt | chat | parser``: a country in, a sentence out.

    Args:
        chat: Who answers.
    """
    prompt = ChatPromptTemplate.from_template("What is the capital of {country}?")
    return prompt | chat | StrOutputParser()


def retriever() -> VectorStoreRetriever:
    """The best two of a few country profiles, from an in-memory vector store."""
    store = InMemoryVectorStore(HashedWords())
    store.add_documents([Document(text, id=country) for country, text in profiles().items()])
    return store.as_retriever(search_kwargs={"k": 2})


def rag(chat: ChatEnsemble, found: Runnable[str, list[Document]]) -> Runnable[str, str]:
    """A question in, an answer out of the retrieved profiles out.

    Args:
        chat: Who answers.
        found: What finds the profiles.
    """
    steps = {"context": found | _joined, "question": RunnablePassthrough()}
    return steps | RAG_PROMPT | chat | StrOutputParser()


def _joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def agent(chat: ChatEnsemble) -> Any:
    """LangChain's agent with a calculator and a look-up of country facts.

    Args:
        chat: Who decides, calls and answers.

    Raises:
        ConfigError: The package ``langchain`` is not installed.
    """
    try:
        from langchain.agents import create_agent
    except ImportError as error:
        raise ConfigError(
            "the agent needs the package langchain, which is not installed; "
            'run: pip install "langchain-ensemble[demo]"'
        ) from error
    return create_agent(chat, [calculator, country_fact])


def steps(agent: Any, question: str) -> Iterator[tuple[str, str]]:
    """Run an agent and tell what happens, as it happens.

    Args:
        agent: The agent.
        question: What is asked.

    Yields:
        ("text", a piece of an answer), ("call", a whole call) or ("result", a tool's result).
    """
    asked = {"messages": [("user", question)]}
    limit = {"recursion_limit": AGENT_STEPS}
    try:
        for mode, event in agent.stream(asked, limit, stream_mode=["messages", "updates"]):
            if mode == "updates":
                yield from _done(m for update in event.values() for m in update["messages"])
            elif isinstance(event[0], AIMessageChunk) and event[0].text:
                yield "text", str(event[0].text)
    except RecursionError:  # LangGraph's is one
        yield "result", f"stopped after {AGENT_STEPS} steps without an answer"


def _done(messages: Iterable[BaseMessage]) -> Iterator[tuple[str, str]]:
    for message in messages:
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                arguments = ", ".join(f"{k}={v!r}" for k, v in call["args"].items())
                yield "call", f"calls {call['name']}({arguments})"
        elif isinstance(message, ToolMessage):
            yield "result", str(message.text)


def structured(chat: ChatEnsemble) -> Runnable[Any, Note]:
    """A text in, a :class:`Note` out.

    Args:
        chat: Who answers.
    """
    prompt = ChatPromptTemplate.from_template(
        "Extract: {text}\nAnswer as JSON with keys name, city, year."
    )
    return prompt | chat.with_structured_output(Note)
