"""``choose`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.demo import members

OPTIONS = ["-m", f"facts={members()['facts']}", "--candidates", f"stories={members()['stories']}"]
FAST = ["--fusion", "unite", "--max-tokens", "6", "--metric", "contains", "--stop", "\n"]


@pytest.fixture
def dev(tmp_path: Path) -> str:
    rows = [
        {"prompt": "Question: What is the capital of France?\nAnswer:", "answer": "Paris"},
        {"prompt": "The dog wagged his", "answer": "tail"},
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_tables_and_files(invoke: Any, dev: str, tmp_path: Path) -> None:
    answers = ["--answers", str(tmp_path / "answers.jsonl")]
    files = [tmp_path / f"choice{suffix}" for suffix in (".html", ".json", ".yaml")]
    outs = [part for path in files for part in ("--out", str(path))]
    result = invoke("choose", *OPTIONS, "--dev", dev, *FAST, *answers, *outs)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(files[1].read_text("utf-8"))
    assert result.stdout.splitlines()[-1] == told["verdict"]["sentence"]
    assert told["systems"][-1]["name"] in result.stdout
    assert "2 questions, 95 % intervals" in result.stdout
    assert told["verdict"]["sentence"] in files[0].read_text("utf-8")
    suggested = yaml.safe_load(files[2].read_text("utf-8"))
    assert suggested == told["suggestion"]
    assert EnsembleLLM.from_config(files[2]).max_tokens == 6
    config = tmp_path / "candidates.yaml"
    config.write_text(
        yaml.safe_dump({"members": members(), "fusion": "unite", "max_tokens": 6, "stop": ["\n"]}),
        encoding="utf-8",
    )
    result = invoke("choose", "-c", str(config), "--dev", dev, *FAST[-4:-2], *answers, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    again = json.loads(result.stdout)
    assert again == told
    (tmp_path / "folder.html").mkdir()
    outs = ["--out", str(tmp_path / "folder.html"), "--json"]
    result = invoke("choose", "-c", str(config), "--dev", dev, *FAST[-4:-2], *answers, *outs)
    assert (result.exit_code, json.loads(result.stdout)) == (2, told)  # nothing is lost
    assert "cannot write" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give candidates with -m name=id"),
        (OPTIONS[:2], "at least 2 are needed"),
        ([*OPTIONS, "--metric", "exact"], "unknown metric 'exact'"),
        ([*OPTIONS, "--out", "report.pdf"], "must end in .html"),
        ([*OPTIONS, "--out", "no/such/folder/a.html"], "there is no such folder"),
        ([*OPTIONS, "--answers", "no/such/folder/a.jsonl"], "there is no folder"),
        ([*OPTIONS, "--vram", "lots"], "vram is 'lots'"),
    ],
)
def test_asked_wrongly(invoke: Any, dev: str, options: list[str], said: str) -> None:
    result = invoke("choose", *options, "--dev", dev)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_broken_line_of_the_dev_set(invoke: Any, dev: str) -> None:
    Path(dev).write_text('{"prompt": "a", "answer": "b"}\n{"prompt"', encoding="utf-8")
    result = invoke("choose", *OPTIONS, "--dev", dev)
    assert result.exit_code == 2
    assert "line 2 is no JSON" in result.stderr


def test_no_candidate_left(invoke: Any, dev: str) -> None:
    gone = ["-m", "a=/nowhere/a", "-m", "b=/nowhere/b"]
    result = invoke("choose", *gone, "--dev", dev)
    assert result.exit_code == 1
    assert result.stderr.count("is left out") == 2
    assert "no candidate can be measured: a: " in result.stderr
