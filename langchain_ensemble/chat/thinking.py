"""How a reasoning model thinks: where a thought opens and closes, and what turns it off.

Read off the template: a switch that changes what it renders (``enable_thinking``, ``thinking``),
a generation prompt that opens a thought itself, or channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_ensemble.chat.template import Refused, Template

_SWITCHES = ("enable_thinking", "thinking")
_MARKERS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("Here is my thought process:", "Here is my response:"),
)
_CHANNEL = "<|channel|>analysis<|message|>"
_FINAL = "<|start|>assistant<|channel|>final<|message|>"
_PROBE = ({"role": "user", "content": "Hi"},)
NO_THINKING = "/no_think"
"""The word of ``how="word"``."""


@dataclass(frozen=True)
class ThinkingFormat:
    """One model's way to think.

    Attributes:
        opening: Opens a thought.
        closing: Closes it; what the model writes before it is the thought.
        how: ``"switch"``: a variable of the template turns it on and off; ``"word"``: a word in the
            system prompt turns it off; ``"always"``: it cannot be turned off.
        spelled: Ids of the markers that are control tokens, with their bytes.
        switch: The template's variable, empty where there is none.
        space: White space after the opening and before the closing.
        reply: What stands between the closing and the answer.
        stop: Text that closes the answer of a model that brackets it, if it does.
    """

    opening: str
    closing: str
    how: Literal["switch", "word", "always"]
    spelled: Mapping[int, bytes] = field(default_factory=dict)
    switch: str = ""
    space: str = "\n"
    reply: str = "\n\n"
    stop: tuple[str, ...] = ()

    def settings(self, on: bool) -> dict[str, Any]:
        """Variables for the template.

        Args:
            on: Whether the model is to think.
        """
        return {self.switch: on} if self.switch else {}

    def open(self, prompt: str) -> str:
        """A rendered prompt, with the thought opened if the template has not done so.

        Args:
            prompt: Rendered with thinking on.
        """
        if prompt.rstrip().endswith(self.opening.rstrip()):
            return prompt
        return prompt + self.opening + self.space

    def close(self, thought: str) -> str:
        """A thought from inside its opening to where the answer begins.

        Args:
            thought: The thought.
        """
        return thought.strip("\n") + self.space + self.closing + self.reply


def thinking_format(template: Template, controls: Mapping[str, int]) -> ThinkingFormat | None:
    """How a member thinks.

    Args:
        template: Its chat template.
        controls: Spelling -> id of its control tokens.

    Returns:
        Its format, or None where the template shows none.
    """
    if _CHANNEL in template.literals:
        spelled = _ids(_CHANNEL + "<|end|>", controls)
        return ThinkingFormat(_CHANNEL, "<|end|>", "always", spelled, space="", reply=_FINAL)
    plain = _render(template, {})
    for opening, closing in _MARKERS:
        if opening not in template.literals or closing not in template.literals:
            continue
        for switch in _SWITCHES:
            if switch in template.variables:
                found = _switched(template, switch, opening, closing, controls)
                if found is not None:
                    return found
        if plain.rstrip().endswith(opening):
            space = plain[len(plain.rstrip()) :]
            spelled = _ids(opening + closing, controls)
            how: Literal["word", "always"] = "word" if _obeys_word(template, opening) else "always"
            return ThinkingFormat(opening, closing, how, spelled, space=space)
    return None


def _obeys_word(template: Template, opening: str) -> bool:
    """Whether a word in the system prompt keeps the template from opening a thought."""
    if NO_THINKING not in template.literals:
        return False
    try:
        text = template.render([{"role": "system", "content": NO_THINKING}, *_PROBE])
    except Refused:
        return False
    return not text.rstrip().endswith(opening)


def _switched(
    template: Template, switch: str, opening: str, closing: str, controls: Mapping[str, int]
) -> ThinkingFormat | None:
    on, off = (_render(template, {switch: value}) for value in (True, False))
    if on == off:
        return None
    space, reply = "\n", "\n\n"
    stop: tuple[str, ...] = ()
    if on.rstrip().endswith(opening):
        space = on[len(on.rstrip()) :]
    if off.rstrip().endswith(closing):
        reply = off[len(off.rstrip()) :]
        before = off.rstrip().removesuffix(closing)
        if before.rstrip().endswith(opening):  # an empty thought: its white space is two spaces
            inner = before[len(before.rstrip()) :]
            space = inner[: len(inner) // 2]
    elif "<response>" in template.literals:
        reply, stop = "\n<response>", ("</response>",)
    spelled = _ids(opening + closing, controls)
    return ThinkingFormat(opening, closing, "switch", spelled, switch, space, reply, stop)


def _render(template: Template, settings: Mapping[str, Any]) -> str:
    try:
        return template.render(_PROBE, **settings)
    except Refused:
        return ""


def _ids(text: str, controls: Mapping[str, int]) -> dict[int, bytes]:
    return {i: spelling.encode() for spelling, i in controls.items() if spelling in text}
