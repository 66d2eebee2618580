"""The dev set: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble.choose.devset import Item, read_dev_set
from langchain_ensemble.errors import ConfigError, EnsembleWarning

QUESTION = {"prompt": "2 + 2 =", "answer": "4"}
METRIC = "last_number"


def test_items_from_a_file_are_those_from_a_list(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**QUESTION, "metric": "last_number"},
        {"prompt": "A or B?", "answers": ["A", "C"], "metric": "letter"},
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    items = read_dev_set(path)
    assert items == read_dev_set(rows) == read_dev_set(str(path))
    assert [item.metric for item in items] == ["last_number", "letter"]
    assert items[1].answers == ("A", "C")


def test_messages_in_every_form() -> None:
    system = {"role": "system", "content": "Be brief."}
    (item,) = read_dev_set([{"messages": [system, ("human", "Hi")], "answer": "Hello"}])
    assert item.messages == (("system", "Be brief."), ("user", "Hi"))
    assert [(turn.role, turn.text) for turn in item.conversation.messages] == [*item.messages]
    assert item.text == "system: Be brief.\nuser: Hi"


@pytest.mark.parametrize(
    ("metric", "text", "right", "said"),
    [
        ("exact_match", " the Paris.", True, "paris"),
        ("exact_match", "Paris, France", False, "paris france"),
        ("contains", "It is Paris!", True, "it is paris"),
        ("last_number", "so 3 * 14 = 42.00", True, "42"),
        ("last_number", "$4,200", False, "4200"),
        ("last_number", "it is -0.0", False, "0"),
        ("last_number", "no idea", False, ""),
        ("letter", "(B) is right", True, "B"),
        ("letter", "bees", False, ""),
        (lambda text, answers: text in answers, "x", True, "x"),
    ],
)
def test_metrics_judge_and_reduce(metric: Any, text: str, right: bool, said: str) -> None:
    gold = {"last_number": "42", "letter": "B"}.get(str(metric))
    answers = (gold,) if gold else ("Paris", "x")
    item = Item("?", None, answers, metric)
    assert item.right(text) is right
    assert item.said(text) == said


def test_a_common_metric_is_for_items_without_one() -> None:
    first, second = read_dev_set([QUESTION, {**QUESTION, "metric": "contains"}], metric=METRIC)
    assert (first.metric, second.metric) == (METRIC, "contains")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no items"),
        (["x"], "item 1 is 'x'"),
        ([QUESTION, {"prompt": "a"}], "item 2 has neither of answer and answers"),
        ([{"answer": "a"}], "neither of prompt and messages"),
        ([{**QUESTION, "messages": []}], "both of prompt and messages"),
        ([{**QUESTION, "answr": "a"}], "Did you mean 'answer'"),
        ([{**QUESTION, "metric": "exact"}], "Did you mean 'exact_match'"),
        ([{**QUESTION, "metric": ["letter"]}], r"item 1: unknown metric \['letter'\]"),
        ([{**QUESTION, "answer": "four", "metric": "last_number"}], "item 1: gold .* no number"),
        ([{"prompt": 3, "answer": "a"}], "prompt is 3"),
        ([{"prompt": "\ud800", "answer": "a"}], "item 1: the text has a lone surrogate"),
        ([{"prompt": "a", "answer": " "}], "answer is ' '"),
        ([{"prompt": "a", "answers": []}], r"answer is \[\]"),
        ([{"messages": [], "answer": "a"}], r"messages is \[\]"),
        ([{"messages": [{"role": "tool", "content": "a"}], "answer": "a"}], "is no message"),
        ([QUESTION, {"messages": [("user", "a")], "answer": "a"}], "split it"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(rows: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_dev_set(rows)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps(QUESTION) + '\n\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3 is no JSON"):
        read_dev_set(path)
    with pytest.raises(ConfigError, match="cannot read the dev set"):
        read_dev_set(tmp_path / "nothing.jsonl")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no items"):
        read_dev_set(path)


@pytest.mark.parametrize("said", [0.3, "no", None, [True]])
def test_a_metric_says_true_or_false(said: Any) -> None:
    item = Item("?", None, ("x",), lambda *_: said, "dev set, item 7")
    with pytest.raises(ConfigError, match=r"item 7 \('\?'\), answer 'y': TypeError: it gave"):
        item.right("y")


def test_letters_that_no_answer_can_be_are_warned_of() -> None:
    rows = [{"prompt": "?", "answer": one, "metric": "letter"} for one in ("A", "b", "Paris")]
    with pytest.warns(EnsembleWarning, match=r"2 of 3 questions.*item 2: 'b'"):
        read_dev_set(rows)


def test_a_file_as_windows_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, [QUESTION] * 2)).encode())
    assert read_dev_set(path) == read_dev_set([QUESTION] * 2)
