"""``run``: one prompt, one streamed answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from langchain_ensemble.cli.console import Bars, say, say_json, stderr
from langchain_ensemble.errors import ConfigError, DeadlineError
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.trace import tracing


class _Ending(BaseCallbackHandler):
    """Keeps what is said about an answer when it is complete."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.info = dict(response.generations[0][0].generation_info or {})


def run(llm: EnsembleLLM, prompt: str, *, as_json: bool, trace: Path | None = None) -> None:
    """Decode one answer and write it while it grows.

    Args:
        llm: The ensemble.
        prompt: The prompt.
        as_json: Write one JSON object at the end instead of the text as it comes.
        trace: Where the answer's trace goes: a page where it ends in ``.html``, else JSON.

    Raises:
        DeadlineError: ``timeout`` passed; what was decoded is on stdout, or nothing of it as JSON.
        ConfigError: The trace cannot be written there.
    """
    if trace is None:
        _run(llm, prompt, as_json=as_json)
        return
    if not trace.expanduser().parent.is_dir():  # said before minutes of work
        raise ConfigError(
            f"cannot write the trace to {str(trace)!r}: there is no folder {str(trace.parent)!r}"
        )
    with tracing() as traces:
        try:
            _run(llm, prompt, as_json=as_json)
        finally:
            for made in traces:
                made.save(trace)


def _run(llm: EnsembleLLM, prompt: str, *, as_json: bool) -> None:
    with llm:
        with Bars() as bars:
            llm.engine.load(bars)
        ending = _Ending()
        texts: list[str] = []
        try:
            for text in llm.stream(prompt, config={"callbacks": [ending]}):
                texts.append(text)
                if not as_json:
                    say(text)
        except DeadlineError as error:
            raise _late(error, llm.timeout, "".join(texts), as_json) from error
    if as_json:
        say_json({"prompt": prompt, "text": "".join(texts), **ending.info})
    elif sys.stdout.isatty():
        say("\n")
        stderr().print(_summary(ending.info), style="dim")


def _late(error: DeadlineError, timeout: float | None, said: str, as_json: bool) -> DeadlineError:
    """Write what was held back, and say where the text is: a shell has no ``.partial``."""
    whole = error.partial[0] if error.partial else said
    where = "no JSON is written for a part of an answer; without --json it is streamed"
    if not as_json:
        say(whole.removeprefix(said) if whole.startswith(said) else "")
        where = "what was decoded until then is on stdout" if whole else "nothing was decoded"
    return DeadlineError(
        f"the timeout of {timeout:g} s passed before the answer was complete: {where}; "
        "raise --timeout or lower --max-tokens",
        error.partial,
    )


def _summary(info: dict[str, Any]) -> str:
    """One line about an answer, for a terminal."""
    usage, ensemble = info["usage"], info["ensemble"]
    return (
        f"{info['model_name']}: {info['finish_reason']}, {usage['prompt_tokens']} + "
        f"{usage['completion_tokens']} tokens, {ensemble['share_fused']:.0%} of "
        f"{ensemble['steps']} steps fused"
    )
