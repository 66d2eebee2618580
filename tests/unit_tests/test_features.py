"""``docs/features.md`` claims nothing without a test."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]+\]\(\.\./([\w/.]+)#([\w.]+)\)")


@lru_cache
def defined(path: str) -> frozenset[str]:
    """Names of a file's tests: functions, classes, and functions of classes."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in body if isinstance(node, (*functions, ast.ClassDef))}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, functions)}
    return frozenset(names)


def rows() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if set("".join(row)) - set("-")]


@pytest.mark.parametrize(("path", "name"), LINK.findall(TEXT), ids=lambda part: str(part)[-60:])
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file(), path
    assert name in defined(path), f"{path} has no {name}"
    assert re.search(r"(^|\.)(test_|Test)", name), name


def test_every_feature_is_held_by_a_test() -> None:
    features = [row for row in rows() if len(row) == 6 and row[0] != "feature"]
    assert len(features) > 25
    for row in features:
        assert LINK.search(row[-1]), row[0]


def test_every_pitfall_is_held_by_a_test_named_after_it() -> None:
    for number in range(1, 21):
        (row,) = [row for row in rows() if row[0] == f"P{number}"]
        names = [name for _, name in LINK.findall(row[-1])]
        assert names, row
        assert all(name.startswith(f"test_p{number:02}_") for name in names), names
