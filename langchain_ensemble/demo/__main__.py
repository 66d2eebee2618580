"""``python -m langchain_ensemble.demo``: what two members say together, and each alone. Offline.

Knows the terminal and the public LLM class; nothing of how answers are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.rule import Rule

from langchain_ensemble.demo import PROMPTS
from langchain_ensemble.llms import EnsembleLLM

MAX_TOKENS = 40


def show(console: Console, label: str, pieces: Iterator[str]) -> None:
    """Print an answer as it comes."""
    console.print(f"[bold]{label:>8}[/bold] ", end="")
    started = False
    for piece in pieces:
        text = piece if started else piece.lstrip(" ")
        started = started or bool(text)
        console.out(text.replace("\n", "\n         "), end="", highlight=False)
        console.file.flush()
    console.print()


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask every prompt: the ensemble first, streamed, then each member alone."""
    parser = argparse.ArgumentParser(prog="python -m langchain_ensemble.demo", description=__doc__)
    parser.add_argument("prompts", nargs="*", help="your own prompts in place of ours")
    parser.add_argument("--device", default="cpu", help='"cpu" (default), "auto", "cuda:0" …')
    parser.add_argument("--fusion", default="unite", help='"unite" (default), "deepen", …')
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    settings = {"fusion": given.fusion, "device": given.device, "max_tokens": MAX_TOKENS}
    with EnsembleLLM.demo(**settings) as llm:
        names = llm.params.names
        console.print(
            f"Two toy members of two million parameters each, [bold]{names[0]}[/bold] and "
            f"[bold]{names[1]}[/bold], with different tokenizers and architectures; "
            f"fusion {llm.model_name}."
        )
        for prompt in given.prompts or PROMPTS.values():
            console.print(Rule(style="dim"))
            console.print(prompt, markup=False, style="cyan")
            show(console, "together", llm.stream(prompt))
            for name in names:
                show(console, name, llm.solo(name).stream(prompt))


if __name__ == "__main__":
    main()
