"""Tools and ``tool_choice`` in every form that LangChain's callers write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from langchain_ensemble.adapter.formats import class_schema, is_recursive, untitled
from langchain_ensemble.errors import ConfigError, unknown_name

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

ANY_OF = ("any", "required")
"""Choices that mean: call something. Beside them: ``"auto"``, ``"none"``, a tool's name."""


def openai_tools(tools: Sequence[ToolLike], strict: bool | None = None) -> list[dict[str, Any]]:
    """Write tools in OpenAI's form.

    Args:
        tools: Dicts (of OpenAI, Anthropic, or JSON schemas with a title), Pydantic classes,
            TypedDicts, functions, LangChain tools.
        strict: True closes every object of the arguments' schema and requires every property, as
            OpenAI does. A schema is enforced while decoding whatever this is.

    Returns:
        ``{"type": "function", "function": {...}}`` each.

    Raises:
        ConfigError: Something that is no tool, a tool of a provider's own.
    """
    return [_openai_tool(tool, strict) for tool in tools]


def unique(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out tools that are offered twice.

    Args:
        tools: In OpenAI's form.

    Raises:
        ConfigError: Two tools of one name that take different arguments.
    """
    kept: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool["function"]
        known = kept.setdefault(function["name"], tool)["function"]
        if known.get("parameters") != function.get("parameters"):
            raise ConfigError(
                f"two tools are called {function['name']!r} and take different arguments; names "
                "must be unique"
            )
    return list(kept.values())


def _openai_tool(tool: ToolLike, strict: bool | None) -> dict[str, Any]:
    problem = None
    try:
        written = convert_to_openai_tool(tool, strict=strict)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if problem is not None:
        raise ConfigError(f"{tool!r} cannot be read as a tool: {problem}")
    if not isinstance(written.get("function"), Mapping):
        raise ConfigError(
            f"tool of type {written.get('type')!r} is run by another provider; give tools with a "
            "name and a schema of their arguments"
        )
    return {**written, "function": {**written["function"], **_recursive(tool)}}


def _recursive(tool: ToolLike) -> dict[str, Any]:
    """Parameters of a class that holds itself; LangChain's writing lets anything pass there."""
    kind = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        return {}
    schema = class_schema(kind)
    if not is_recursive(schema):
        return {}
    schema.pop("description", None)
    parameters: dict[str, Any] = untitled(schema)
    return {"parameters": parameters}


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of tools in OpenAI's form, in order."""
    return [str(tool["function"]["name"]) for tool in tools]


def read_choice(
    choice: Any, names: Sequence[str]
) -> tuple[Literal["auto", "none", "required"], tuple[str, ...]]:
    """Read ``tool_choice``.

    Args:
        choice: None or False or ``"auto"``: the members decide; ``"none"``; ``"any"``,
            ``"required"`` or True: some tool; a tool's name, or a dict that names it.
        names: Tools on offer.

    Returns:
        Whether the turn may, must not or must call; and which tools may be called (none: all).

    Raises:
        ConfigError: No tool of that name, a form that is not known, a must without tools.
    """
    wanted = _named(choice)
    if wanted is None or wanted is False:
        return "auto", ()
    if wanted is True or (wanted in ANY_OF and wanted not in names):
        if not names:
            raise ConfigError(f"tool_choice={choice!r} without tools; give at least one tool")
        return "required", ()
    if wanted in ("auto", "none") and wanted not in names:
        return ("auto", ()) if wanted == "auto" else ("none", ())
    if wanted not in names:
        known = [*names, "auto", "none", *ANY_OF]
        raise ConfigError(unknown_name("tool in tool_choice", wanted, known))
    return "required", (str(wanted),)


def _named(choice: Any) -> Any:
    """The name in a dict of OpenAI or Anthropic; anything else as it is."""
    if not isinstance(choice, Mapping):
        return choice if isinstance(choice, str | bool | None) else repr(choice)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    return name if name is not None else choice.get("type", repr(dict(choice)))
