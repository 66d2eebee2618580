"""Structured output: the chain of a model and the parser that reads its object."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_ensemble.adapter.faults import UnfinishedOutputError
from langchain_ensemble.adapter.formats import json_schema
from langchain_ensemble.adapter.tools import openai_tools, tool_names
from langchain_ensemble.errors import ConfigError, unknown_name

METHODS = ("json_schema", "function_calling", "json_mode")


class StructuredOutputParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads the object that an answer holds; one that was cut is an error, never half an object.

    In a stream, dicts grow as they are decoded; an object of a class is given once, when whole.
    """

    target: Any = None
    """Pydantic class of the object; None: a dict."""
    tool: str | None = None
    """The tool whose arguments are the object; None: the answer's text is."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Read the object.

        Args:
            result: One answer, whole or as far as a stream has come.
            partial: Whether the stream goes on.

        Returns:
            The object; None while a stream has not come far enough.

        Raises:
            UnfinishedOutputError: The answer was cut.
            OutputParserException: The answer is no such object.
        """
        generation = result[0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        ended = "finish_reason" in message.response_metadata if message is not None else False
        if partial and not ended:
            return None if self.target is not None else self._growing(message, generation.text)
        if message is not None and message.response_metadata.get("unfinished"):
            raise _cut(message)
        return self._built(self._whole(message, generation.text))

    def parse(self, text: str) -> Any:
        """Read an object from a text, as :meth:`parse_result`."""
        return self.parse_result([Generation(text=text)])

    def _growing(self, message: BaseMessage | None, text: str) -> Any:
        if self.tool is not None:
            return self._arguments(message)
        try:
            grown = parse_partial_json(text) if text.strip() else None
        except ValueError:
            return None
        return grown if isinstance(grown, dict) else None

    def _arguments(self, message: BaseMessage | None) -> dict[str, Any] | None:
        for call in getattr(message, "tool_calls", ()):
            if call["name"] == self.tool:
                found: dict[str, Any] = call["args"]
                return found
        return None

    def _whole(self, message: BaseMessage | None, text: str) -> Any:
        if self.tool is None:
            problem = None
            try:
                return json.loads(text)
            except ValueError as error:
                problem = str(error)
            raise OutputParserException(f"the answer is no JSON ({problem})", llm_output=text)
        arguments = self._arguments(message)
        if arguments is None:
            raise OutputParserException(f"no call of {self.tool!r} was made", llm_output=text)
        return arguments

    def _built(self, found: Any) -> Any:
        if self.target is None:
            return found
        problem = None
        try:
            if hasattr(self.target, "model_validate"):
                return self.target.model_validate(found)
            return self.target.parse_obj(found)
        except ValueError as error:  # pydantic's, of both versions; a validator of the user's
            problem = " ".join(str(error).split())
        raise OutputParserException(
            f"the answer obeys the schema of {self.target.__name__}, and its validation says: "
            f"{problem}",
            llm_output=json.dumps(found, ensure_ascii=False),
        )


def _cut(message: BaseMessage) -> UnfinishedOutputError:
    usage = getattr(message, "usage_metadata", None) or {}
    broken = getattr(message, "invalid_tool_calls", None) or [{"args": message.text}]
    return UnfinishedOutputError(
        f"the answer was cut after {usage.get('output_tokens', '?')} tokens, before its object was "
        "complete; raise max_tokens, shorten the conversation, or bound the schema (maxLength, "
        "maxItems)",
        str(broken[0].get("args") or ""),
    )


def parser_for(schema: Any, tool: str | None) -> StructuredOutputParser:
    """Make the parser of a schema; ``tool``: the tool whose arguments are the object."""
    target = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    return StructuredOutputParser(target=target, tool=tool)


def structured_output(
    chat: BaseChatModel,
    schema: Any,
    *,
    method: str,
    include_raw: bool,
    strict: bool | None,
    arguments: dict[str, Any],
) -> Runnable[Any, Any]:
    """Chain a chat model, held to a schema, with the parser of its object.

    Args:
        chat: The model.
        schema: A class or a JSON schema; None: any JSON object.
        method: One of :data:`METHODS`.
        include_raw: Give ``{"raw", "parsed", "parsing_error"}`` in place of the object.
        strict: Close every object of the schema and require every property.
        arguments: Other arguments of the call.

    Raises:
        ConfigError: An unknown method, no schema, or one that cannot be read.
    """
    if method not in METHODS:
        raise ConfigError(unknown_name("method of structured output", method, METHODS))
    if schema is None and method != "json_mode":
        raise ConfigError(f"method={method!r} needs a schema; only 'json_mode' does without")
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    given = {**arguments, **({} if schema is None else {"ls_structured_output_format": traced})}
    name = None
    if method == "function_calling":
        (name,) = tool_names(openai_tools([schema]))
        choice: dict[str, Any] = {"tool_choice": name, "parallel_tool_calls": False}
        model = chat.bind_tools([schema], strict=strict, **choice, **given)
    else:
        model = chat.bind(**_held_to(schema, method, strict), **given)
    parser = parser_for(schema, name)
    return _with_raw(model, parser) if include_raw else model | parser


def _held_to(schema: Any, method: str, strict: bool | None) -> dict[str, Any]:
    if schema is None:
        return {"response_format": {"type": "json_object"}}
    wanted = json_schema(schema, strict)
    if method == "json_mode":  # members are told by the prompt, and held to it all the same
        return {"grammar": {"json_schema": wanted}}
    inner = {"name": str(wanted.get("title") or "answer"), "schema": wanted}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def _with_raw(model: Runnable[Any, Any], parser: StructuredOutputParser) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
