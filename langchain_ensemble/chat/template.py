"""One member's chat template: rendered as transformers does, and read for what it knows.

A base model has none and gets :data:`PLAIN`, which writes turns the way people write dialogues
down. Nothing here knows tokens or what a conversation of ours is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from langchain_ensemble.errors import ConfigError

PLAIN = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}System{% elif message.role == 'user' %}User"
    "{% elif message.role == 'assistant' %}Assistant"
    "{% else %}{{ raise_exception('only system, user and assistant') }}{% endif %}"
    ":\n{{ message.content }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""The template of a model that has none; what the tokenizer itself puts first comes before it.

The answer starts on a line of its own: after ``Assistant:`` most vocabularies would begin it with
a space, which the other members do not write.
"""
PLAIN_STOP = ("\nUser:", "\nSystem:", "\nAssistant:")
"""Where the answer of a model without a template ends, since it has no token for that."""

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_ASKS_NONE = re.compile(r"content['\"]?\]? is (?:not )?none")
_MARKER = re.compile(r"[<\[◁][^<>\[\]\s]{1,60}[>\]▷]")


class Refused(Exception):
    """A template raised: it does not take these messages."""


class Template:
    """One chat template, or the one for tools and the one for all else.

    Attributes:
        plain: Whether the model has none of its own.
        literals: All text that it writes itself or compares with, joined by NUL.
        variables: Names that it reads.
    """

    def __init__(self, name: str, tokenizer: Any, text: str | None) -> None:
        """Read a template.

        Args:
            name: The member's name, for messages.
            tokenizer: Its tokenizer: special tokens, and a second template for tools.
            text: The template; None: :data:`PLAIN`.

        Raises:
            ConfigError: It is no Jinja.
        """
        self._name = name
        self.plain = text is None
        self._text = PLAIN if text is None else text
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, Mapping) else {}
        both = text is not None and named.get("default") == text
        self._with_tools: str = named.get("tool_use", self._text) if both else self._text
        self._special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
        try:
            trees = [_parse(t) for t in dict.fromkeys((self._text, self._with_tools))]
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"member {name!r} has a chat template that is no Jinja: {error}; give "
                "Member(chat_template=...)"
            ) from error
        self.variables = frozenset().union(*(meta.find_undeclared_variables(t) for t in trees))
        constants = [c.value for t in trees for c in t.find_all(nodes.Const)]
        data = [d.data for t in trees for d in t.find_all(nodes.TemplateData)]
        texts = [c for c in constants if isinstance(c, str)]
        self.literals = "\0".join([*data, *texts])
        self.markers = tuple(dict.fromkeys(m for t in texts for m in _MARKER.findall(t)))

    @property
    def asks_for_none(self) -> bool:
        """Whether it tells a turn of nothing but calls by a content that is None."""
        return _ASKS_NONE.search(self._text + self._with_tools) is not None

    @property
    def knows_tools(self) -> bool:
        """Whether it reads the tools on offer."""
        return "tools" in self.variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> str:
        """Render messages, the opening of the assistant's turn included.

        Args:
            messages: Turns in transformers' form.
            tools: JSON schemas of the tools on offer.
            settings: Further variables of the template.

        Returns:
            The text.

        Raises:
            Refused: The template raised.
        """
        try:
            rendered, _ = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self._with_tools if tools else self._text,
                add_generation_prompt=True,
                **{**self._special, **settings},
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise Refused(str(error)) from error
        return str(rendered[0])


def _parse(text: str) -> nodes.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    return environment.parse(_GENERATION.sub("", text))
