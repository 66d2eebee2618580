"""How ``check`` looks on a page: tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_ensemble.cli.console import size_text

SHOWN = 4
"""Control tokens of a role that are spelled out."""


def show(report: Mapping[str, Any], console: Console) -> None:
    """Write a report.

    Args:
        report: As ``check.report_of`` makes it.
        console: Where to.
    """
    members = report["members"]
    if members:
        console.print(_members(members, report["main"]))
        if adapted := [member for member in members if member["adapter"] is not None]:
            console.print(_adapters(adapted))
        console.print(_roles(members))
        console.print(_memory(members))
    if report["common"] is not None:
        if report["common"]["pairs"]:
            console.print(_common(report["common"]))
        console.print(_fusions(report["fusions"], report["fusion"]))
    for problem in report["problems"]:
        style = "bold red" if problem["level"] == "error" else "yellow"
        line = Text(f"{problem['level']}: ", style)
        console.print(line.append(" ".join(problem["message"].split()), "default"))
    console.print(
        Text("these members fit", "green")
        if report["fits"]
        else Text("this does not fit", "bold red")
    )


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table


def _members(members: Sequence[Mapping[str, Any]], main: str) -> Table:
    right = ("weights", "tokens", "columns", "context")
    table = _table(
        "Members",
        ("member", "family", *right, "end ids", "chat template", "roll-back", "licence",
         "generation_config (not applied)"),
        right,
    )  # fmt: skip
    for member in members:
        values = member["generation_config"]["values"]
        table.add_row(
            member["name"] + (" (main)" if member["name"] == main else ""),
            member["model_type"],
            _count(member["parameters"]),
            f"{member['tokenizer_size']:,}",
            f"{member['logits_width']:,}",
            "?" if member["context"] is None else f"{member['context']:,}",
            ", ".join(map(str, member["end_ids"])) or "none",
            "yes" if member["chat_template"] else "no",
            member["rollback"] or "tried when loaded",
            member["licence"] or "not named",
            ", ".join(f"{name}={value}" for name, value in values.items()) or "none",
        )
    return table


def _adapters(members: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Adapters", ("member", "size", "adapter"), ("size",))
    for member in members:
        adapter = member["adapter"]
        table.add_row(member["name"], size_text(adapter["size"]), adapter["model"])
    return table


def _roles(members: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Control tokens (roles, never text)", ("member", "role", "number", "tokens"), ("number",)
    )
    for member in members:
        for role, tokens in member["roles"].items():
            shown = [f"{token['id']} {token['token']}" for token in tokens[:SHOWN]]
            more = ["…"] if len(tokens) > SHOWN else []
            table.add_row(member["name"], role, str(len(tokens)), ", ".join([*shown, *more]))
    return table


def _memory(members: Sequence[Mapping[str, Any]]) -> Table:
    plans = list(members[0]["memory"])
    tokens = f"{members[0]['kv_tokens']:,}"
    table = _table(f"Memory: weights + cache of {tokens} tokens", ("member", *plans), plans)
    for member in members:
        cells = [
            f"{size_text(sizes['weights'])} + {size_text(sizes['kv_cache'])}"
            for sizes in member["memory"].values()
        ]
        table.add_row(member["name"], *cells)
    return table


def _common(common: Mapping[str, Any]) -> Table:
    table = _table("Common tokens", ("members", "tokens", "share of each", ""), ("tokens",))
    for pair in common["pairs"]:
        shares = " and ".join(f"{share:.1%}" for share in pair["share"])
        table.add_row(
            " × ".join(pair["members"]),
            f"{pair['tokens']:,}",
            shares,
            "same tokenizer" if pair["same"] else "",
        )
    if len(common["pairs"]) > 1:
        table.add_row("all", f"{common['all']:,}", "", "")
    return table


def _fusions(fusions: Mapping[str, Any], chosen: str) -> Table:
    table = _table("What each fusion needs", ("fusion", "fits", "needs"))
    for name, told in fusions.items():
        table.add_row(
            name + (" (chosen)" if name == chosen else ""),
            "yes" if told["fits"] else "no",
            _needs(name, told) if told["fits"] else told["problem"],
        )
    return table


def _needs(name: str, told: Mapping[str, Any]) -> str:
    if name == "average":
        foreign = [f"{n:,} of {who!r} are not among them" for who, n in told["foreign"].items()]
        return "; ".join([f"{told['tokens']:,} tokens of main", *foreign])
    if name == "gac":
        return f"a union of {told['union']:,} tokens"
    if name == "unite":
        return f"{told['candidates']} candidates a step"
    if name == "bytes":
        trees = [f"{count:,} tokens of {who!r}" for who, count in told["trees"].items()]
        return "trees of bytes: " + ", ".join(trees)
    if "roles" in told:
        roles = [f"{who!r} as {role}" for role, who in told["roles"].items()]
        return f"{', '.join(roles)}, compared by their {told['over']}"
    rows = []
    for who, one in told["members"].items():
        size = "x".join(f"{n:,}" for n in one["rows"])
        table = f"{who!r} [{size}] = {size_text(one['table'])}"
        if one["kept"] == "table":
            rows.append(f"{table}, kept on disk")
        else:
            anchors = size_text(one["anchor_embeddings"])
            rows.append(f"{table}, made on the fly from {anchors} of anchor embeddings")
    return "; ".join([f"{told['anchors']:,} anchors, {told['search']} search", *rows])


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
