"""The commands and their options. Everything heavy is imported when a command runs.

Knows options only; what a command does is in the file of its name.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from langchain_ensemble._version import __version__
from langchain_ensemble.cli.console import USAGE, OneLineGroup, say, use_utf8
from langchain_ensemble.cli.options import make_ensemble, one_config, read_prompt

app = typer.Typer(
    name="langchain-ensemble",
    cls=OneLineGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Several language models with different tokenizers decode one answer together.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="What fusions keep on disk: warm, list, verify, clear.")
app.add_typer(cache_app, name="cache")

Members = Annotated[
    list[str] | None,
    typer.Option("-m", "--member", metavar="NAME=ID", help="A member: Hub id or folder; repeat."),
]
Config = Annotated[
    list[Path] | None,
    typer.Option("-c", "--config", metavar="FILE", help="Members and settings, as to_config()."),
]
Fusion = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="average (geometric), bytes, deepen, gac or unite; default: the arithmetic average.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="A=0.6,B=0.4", help="One a member, sum 1; or uniform, online, prompt."),
]
Main = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose vocabulary is read; default: the first.")
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Decode steps at most; default: run 256, chat what fits.")
]
Temperature = Annotated[float | None, typer.Option(help="0, the default, is greedy.")]
TopP = Annotated[float | None, typer.Option(help="1, the default, is off.")]
TopK = Annotated[int | None, typer.Option(help="0, the default, is off.")]
MinP = Annotated[float | None, typer.Option(help="0, the default, is off.")]
Penalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="1, the default, is off.")
]
Seed = Annotated[int | None, typer.Option(help="For sampling.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Text that ends it; repeat.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds at most.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def _lazy(name: str) -> Any:
    """Import a command's file now. torch and transformers take seconds, which help must not."""
    return importlib.import_module(f"langchain_ensemble.cli.{name}")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"{__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help() + "\n")
        raise typer.Exit(USAGE)


@app.command()
def chat(
    member: Members = None,
    config: Config = None,
    fusion: Fusion = None,
    weights: Weights = None,
    main: Main = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System text.")] = None,
    thinking: Annotated[
        str | None, typer.Option(metavar="WHO", help="off (default), main or each.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    timeout: Timeout = None,
) -> None:
    """Talk with the ensemble: /help lists what else a line can be; without members, two toys."""
    command = _lazy("chat")
    llm = command.make_chat(
        member,
        one_config(config),
        fusion=fusion,
        weights=weights,
        main=main,
        thinking=thinking,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        timeout=timeout,
    )
    command.chat(llm, system)


@app.command()
def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or none: stdin.")] = None,
    member: Members = None,
    config: Config = None,
    fusion: Fusion = None,
    weights: Weights = None,
    main: Main = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    timeout: Timeout = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What each member wanted: a page (.html), else JSON."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Stream one answer: the text alone on stdout."""
    llm = make_ensemble(
        member,
        one_config(config),
        fusion=fusion,
        weights=weights,
        main=main,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        timeout=timeout,
    )
    _lazy("run").run(llm, read_prompt(prompt), trace=trace, as_json=as_json)


@app.command()
def check(
    member: Members = None,
    config: Config = None,
    fusion: Fusion = None,
    main: Main = None,
    as_json: Json = False,
) -> None:
    """Tell, without reading weights, whether these members fit together."""
    llm = make_ensemble(member, one_config(config), fusion=fusion, main=main)
    raise typer.Exit(_lazy("check").check(llm, as_json=as_json))


@app.command()
def selftest(
    member: Members = None, config: Config = None, fusion: Fusion = None, main: Main = None
) -> None:
    """Load these members and prove that they decode right, alone and together."""
    llm = make_ensemble(member, one_config(config), fusion=fusion, main=main)
    raise typer.Exit(_lazy("selftest").selftest(llm))


@app.command()
def choose(
    dev: Annotated[Path, typer.Option(metavar="FILE", help="Questions: JSON lines.")],
    candidates: Annotated[
        list[str] | None,
        typer.Option("-m", "--candidates", metavar="NAME=ID", help="Hub id or folder; repeat."),
    ] = None,
    config: Config = None,
    metric: Annotated[
        str | None, typer.Option(help="exact_match (default), contains, last_number or letter.")
    ] = None,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Send prompts through the chat templates.")
    ] = False,
    vram: Annotated[
        str | None, typer.Option(metavar="24GB", help="For all members together.")
    ] = None,
    main: Main = None,
    size: Annotated[int | None, typer.Option(help="Members at most; default: 2.")] = None,
    fusion: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="To be tried; repeat.")
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="To be tried; repeat.")
    ] = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    seed: Seed = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keeps answers; a later run goes on.")
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="As .html, .json, .yaml; repeat.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure candidates alone and together: which to ensemble, and whether it pays."""
    _lazy("choose").choose(
        candidates,
        one_config(config),
        dev,
        out=out or [],
        as_json=as_json,
        metric=metric,
        chat=as_chat or None,
        vram=vram,
        main=main,
        size=size,
        fusions=fusion,
        gates=gate,
        max_tokens=max_tokens,
        stop=stop,
        seed=seed,
        answers=answers,
    )


@app.command()
def calibrate(
    dev: Annotated[Path, typer.Option(metavar="FILE", help="Texts or questions: JSON lines.")],
    member: Members = None,
    config: Config = None,
    fusion: Fusion = None,
    main: Main = None,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Members read prompts in their chat templates.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="learned (default), adapt or uniform.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="exact_match, contains, last_number, letter: how sure is right, too."),
    ] = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What calibration: in a file reads.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn how much each member counts, and measure what that is worth."""
    _lazy("calibrate").calibrate(
        member,
        one_config(config),
        dev,
        chat=as_chat,
        method=method,
        metric=metric,
        out=out,
        as_json=as_json,
        fusion=fusion,
        main=main,
        max_tokens=max_tokens,
        stop=stop,
    )


@app.command()
def info(as_json: Json = False) -> None:
    """Print versions, devices, memory and the cache, for bug reports."""
    _lazy("info").info(as_json=as_json)


@cache_app.command("warm")
def cache_warm(
    member: Members = None, config: Config = None, fusion: Fusion = None, main: Main = None
) -> None:
    """Build now what the fusion of these members needs."""
    _lazy("cache").warm(make_ensemble(member, one_config(config), fusion=fusion, main=main))


@cache_app.command("list")
def cache_list() -> None:
    """List the entries."""
    _lazy("cache").show_list()


@cache_app.command("verify")
def cache_verify() -> None:
    """Read every entry and check it; exit 1 where one is bad."""
    raise typer.Exit(_lazy("cache").verify())


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove every entry; it is built again when it is needed."""
    _lazy("cache").clear()


def main() -> None:
    """Run the command line and leave with its exit code."""
    use_utf8()
    app(prog_name="langchain-ensemble")
