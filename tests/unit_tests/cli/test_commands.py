"""What every command keeps: exit codes, one line for an error, help without torch; info, cache."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import transformers
import yaml

import langchain_ensemble
from langchain_ensemble.cli import info
from langchain_ensemble.store import Store


def one_line(stderr: str) -> str:
    assert stderr.startswith("error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1
    return stderr


def test_help_names_every_command_and_option(invoke):
    shown = invoke("--help")
    assert shown.exit_code == 0
    for command in ("run", "check", "selftest", "info", "cache"):
        assert command in shown.stdout
    for command, options in {
        "run": ["--member", "--config", "--fusion", "--weights", "--main", "--seed", "--stop"],
        "check": ["--member", "--json"],
        "cache": ["warm", "list", "verify", "clear"],
    }.items():
        text = invoke(command, "--help").stdout
        assert [o for o in options if o not in text] == []


def test_no_command_is_a_usage_error(invoke):
    shown = invoke()
    assert shown.exit_code == 2
    assert "selftest" in shown.stdout


def test_version(invoke):
    assert invoke("--version").stdout == f"{langchain_ensemble.__version__}\n"


def test_help_reads_no_torch(environment):
    code = (
        "import sys\nfrom langchain_ensemble.cli.app import app\n"
        "try:\n    app(['run', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "late = [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]\n"
        "assert not late, late\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_help_is_fast(process):
    """Processor time, so that a busy machine does not count; the best of a few."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if times[-1] < 2.0:  # about 1 on an idle machine of 2024
            return
    pytest.fail(f"--help took {times} s of a processor")


WRONG = [
    (["run", "hi", "--fusin", "x"], "--fusion"),
    (["rum", "hi"], "rum"),
    (["run", "hi"], "no members"),
    (["run", "hi", "-m", "a=x", "--top-k", "many"], "--top-k"),
    (["run", "hi", "-m", "a=x", "--temperature", "-1"], "temperature is -1.0"),
    (["run", "hi", "-m", "a=x", "--fusion", "depen"], "Did you mean 'deepen'?"),
    (["run", "hi", "-m", "alpha=x", "-m", "b=y", "--weights", "alfa=1,b=0"], "mean 'alpha'?"),
    (["run", "hi", "-m", "a=x", "-m", "b=y", "--weights", "a=0.5,b=0.6"], "weights sum to 1.1"),
    (["run", "hi", "-m", "alpha=x", "--main", "alpa"], "Did you mean 'alpha'?"),
    (["run", "hi", "-m", "a=x", "-m", "a=y"], "two members are called 'a'"),
    (["run", "hi", "-c", "/nowhere/ensemble.yaml"], "cannot read the configuration"),
    (["run", "hi", "-c", "a.yaml", "-c", "b.yaml"], "-c is given 2 times ('a.yaml', 'b.yaml')"),
    (["check", "-c", "a.yaml", "--config", "b.yaml"], "-c is given 2 times"),
    (["cache"], "command"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_asked_for_wrongly_is_one_line_and_exit_2(invoke, arguments, said):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in one_line(result.stderr)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"members": ["gpt2"], "temprature": 1}, "Did you mean 'temperature'?"),
        ({"members": {"a": {"model": "gpt2", "dtyp": "auto"}}}, "Did you mean 'dtype'?"),
        ({"members": ["gpt2"], "fusion": {"name": "unite", "union_q": 3}}, "union_k"),
        (["gpt2"], "no mapping"),
        ({"fusion": "unite"}, "needs members"),
    ],
)
def test_wrong_configuration_is_one_line_and_exit_2(invoke, tmp_path, settings, said):
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    result = invoke("check", "-c", str(path))
    assert result.exit_code == 2
    assert said in one_line(result.stderr)


def test_a_missing_folder_is_one_line_and_exit_1(invoke):
    result = invoke("run", "hi", "-m", "a=/nowhere/at/all")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "member 'a': folder '/nowhere/at/all' does not exist" in one_line(result.stderr)


def test_info(invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setattr(info, "PACKAGES", (*info.PACKAGES, "no-such-package"))
    Store().remember({"kind": "test"}, lambda: {"x": torch.zeros(1000)})
    result = invoke("info", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["langchain-ensemble"] == langchain_ensemble.__version__
    assert told["python"] == sys.version.split()[0]
    assert told["packages"]["torch"] == torch.__version__
    assert told["packages"]["transformers"] == transformers.__version__
    assert "langchain-core" in told["packages"]
    assert told["packages"]["no-such-package"] is None
    assert told["memory"]["total"] == psutil.virtual_memory().total
    assert told["devices"][-1]["device"] == "cpu"
    assert told["cache"]["folder"] == str(tmp_path)
    assert told["cache"]["entries"] == 1
    assert told["cache"]["size"] > 4000
    assert "hf_very_secret" not in result.stdout
    plain = invoke("info").stdout
    for word in (torch.__version__, str(tmp_path), "free of"):
        assert word in plain
    assert re.search(r"no-such-package +not installed", plain)


def test_cache_from_warm_to_clear(invoke, members, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(tmp_path))
    assert "no entries" in invoke("cache", "list").stdout
    warmed = invoke("cache", "warm", *members, "--fusion", "deepen")
    assert warmed.exit_code == 0
    assert "3 new entries" in warmed.stdout
    assert "nothing new" in invoke("cache", "warm", *members, "--fusion", "deepen").stdout
    listed = invoke("cache", "list").stdout
    assert listed.count("relative") == 2
    assert listed.count("pair table") == 1
    assert "rows=512" in listed
    assert "rows=361" in listed
    good = invoke("cache", "verify")
    assert (good.exit_code, good.stdout.splitlines()[0]) == (0, f"3 good, 0 bad in {tmp_path}")

    entry: Path = Store().list()[0].path
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)
    bad = invoke("cache", "verify")
    assert bad.exit_code == 1
    assert f"bad: {entry}" in bad.stdout
    assert "2 good, 1 bad" in bad.stdout

    cleared = invoke("cache", "clear")
    assert cleared.exit_code == 0
    assert "removed 3 entries" in cleared.stdout
    assert Store().list() == []
    assert "0 good, 0 bad" in invoke("cache", "verify").stdout


def test_a_cache_that_cannot_be_read_is_exit_1(invoke, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LANGCHAIN_ENSEMBLE_CACHE", str(blocked))
    result = invoke("cache", "list")
    assert result.exit_code == 1
    assert str(blocked) in one_line(result.stderr)
