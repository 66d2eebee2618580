"""``selftest``: proofs on the user's own members, a line each; greedy, with the default weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.table import Table
from rich.text import Text

from langchain_ensemble.cli import proofs
from langchain_ensemble.cli.console import BAD, GOOD, Bars, one_line, say, stderr, stdout
from langchain_ensemble.cli.probes import Probe
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.loading import load_members
from langchain_ensemble.params import EnsembleParams, Member


@dataclass(frozen=True)
class Result:
    """One proof.

    Attributes:
        good: Whether it holds.
        what: What was to be proved.
        who: The member, or all of them.
        detail: How far, or what is wrong.
    """

    good: bool
    what: str
    who: str
    detail: str


def selftest(llm: EnsembleLLM) -> int:
    """Load the members, prove, report.

    Args:
        llm: The ensemble; its members, main, fusion and open boundaries count.

    Returns:
        The exit code: 1 where a proof fails.

    Raises:
        MemberError: A member cannot be loaded.
    """
    table = Table(box=None)
    for column in ("", "proof", "member", "detail"):
        table.add_column(column, overflow="fold")
    results = []
    with stderr().status("loading members") as status:
        for result in results_of(llm.params):
            results.append(result)
            status.update(f"{result.what}: {result.who}")
            word, style = ("pass", "green") if result.good else ("FAIL", "bold red")
            table.add_row(Text(word, style), result.what, result.who, result.detail)
    stdout().print(table)
    failed = sum(not result.good for result in results)
    say(f"{len(results) - failed} passed, {failed} failed\n")
    return BAD if failed else GOOD


def results_of(params: EnsembleParams) -> Iterator[Result]:
    """Run the proofs, member by member and then together.

    Args:
        params: What is fixed for the ensemble.
    """
    members = load_members(params.ordered)
    try:
        for settings, member in zip(params.ordered, members, strict=True):
            yield from _of_one(settings, member)
        if len(members) > 1:
            yield from _of_all(params, members)
    finally:
        for member in members:
            member.close()


def _of_one(settings: Member, member: HFMember) -> Iterator[Result]:
    params = EnsembleParams(members=(settings,), fusion="average")
    with Probe(params) as probe:
        ends = member.end_ids or probe.vocabularies[0].end_ids  # alone it ends as generate does
        yield _prove(
            "one member = generate",
            member.name,
            lambda: proofs.one_member_is_generate(member, probe, ends),
        )
    yield _prove("cached = uncached", member.name, lambda: proofs.cached_is_uncached(member))
    yield _prove("batch = single", member.name, lambda: proofs.batch_is_single(member))
    yield _prove("END honoured", member.name, lambda: proofs.end_is_honoured(params, [ends]))


def _of_all(params: EnsembleParams, members: list[HFMember]) -> Iterator[Result]:
    who = " + ".join(member.name for member in members)
    exact = all(member.dtype == torch.float32 for member in members)
    with Bars() as bars, Probe(params).load(bars) as probe:
        ends = [vocabulary.end_ids for vocabulary in probe.vocabularies]
        yield _prove("bytes of all members equal", who, lambda: proofs.bytes_are_equal(probe))
        yield _prove("batch = single", who, lambda: proofs.texts_of_a_batch(probe, exact))
    yield _prove("END honoured", who, lambda: proofs.end_is_honoured(params, ends))


def _prove(what: str, who: str, proof: Callable[[], str]) -> Result:
    """Run one proof; an exception of any kind is a proof that failed, and is named."""
    try:
        return Result(True, what, who, proof())
    except proofs.Failed as error:
        return Result(False, what, who, one_line(str(error)))
    except Exception as error:
        return Result(False, what, who, one_line(f"{type(error).__name__}: {error}"))
