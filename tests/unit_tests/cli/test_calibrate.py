"""``calibrate`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_ensemble import EnsembleLLM
from langchain_ensemble.demo import members

OPTIONS = [part for name, path in members().items() for part in ("-m", f"{name}={path}")]
TEXTS = ["Paris.", "Rome", "A fox.", "Hello!", "She said", "a cat", "Madrid", "red"]


def dev_set(folder: Path, rows: list[Any]) -> str:
    path = folder / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


def test_a_table_a_verdict_and_a_file(invoke: Any, tmp_path: Path) -> None:
    dev, out = dev_set(tmp_path, [{"text": text} for text in TEXTS]), tmp_path / "made.json"
    result = invoke("calibrate", *OPTIONS, "--dev", dev, "--fusion", "average", "--out", str(out))
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(out.read_text("utf-8"))
    assert result.stdout.splitlines()[-1] == told["measured"]["verdict"]
    assert result.stdout.startswith("facts alone")
    llm = EnsembleLLM.demo(fusion="average", calibration=str(out))
    assert llm.score("Paris") == llm.score("Paris", weights=told["weights"])


def test_questions_of_a_chat(invoke: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {text}", "answer": text} for text in TEXTS[:4]]
    rows += [{"messages": [["user", "Hi"]], "answer": text} for text in TEXTS[4:]]
    options = ["--dev", dev_set(tmp_path, rows), "--fusion", "average", "--chat", "--json"]
    result = invoke("calibrate", *OPTIONS, *options, "--method", "uniform")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["weights"] == {"facts": 0.5, "stories": 0.5}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"text": "a"}], "dev_set has 1 texts"),
        ([{"prompt": "a"}], "line 1 has prompt; it needs text alone, or prompt and answer"),
        ([{"messages": [], "answer": "a"}], "messages are for --chat"),
        ([{"txt": "a"}], "Did you mean 'text'"),
        ([7], "line 1 is 7"),
    ],
)
def test_what_is_no_dev_set(invoke: Any, tmp_path: Path, rows: list[Any], told: str) -> None:
    result = invoke("calibrate", *OPTIONS, "--dev", dev_set(tmp_path, rows))
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_file_that_is_not_there(invoke: Any, tmp_path: Path) -> None:
    result = invoke("calibrate", *OPTIONS, "--dev", str(tmp_path / "none.jsonl"))
    assert result.exit_code == 2
    assert "cannot read the dev set" in result.stderr
