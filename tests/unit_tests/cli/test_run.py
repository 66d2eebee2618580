from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from langchain_ensemble import DeadlineError, EnsembleLLM
from langchain_ensemble.cli.options import make_ensemble
from langchain_ensemble.cli.run import run as run_of
from langchain_ensemble.trace import Trace

PROMPT = "Once upon a time, there was a little"


def expected(members: list[str], prompt: str = PROMPT, **settings) -> str:
    llm: EnsembleLLM = make_ensemble([m for m in members if m != "-m"], None, **settings)
    with llm:
        return llm.invoke(prompt)


def test_stdout_is_the_answer_and_nothing_else(process, members):
    done = process("run", PROMPT, *members, "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == expected(members, max_tokens=20)
    assert len(done.stdout) > 20
    assert done.stderr == b""


def test_prompt_from_stdin_without_its_last_newline(invoke, members):
    direct = invoke("run", "Two\nlines", *members, "--max-tokens", "8", "--fusion", "unite")
    piped = invoke(
        "run", *members, "--max-tokens", "8", "--fusion", "unite", "--json", stdin="Two\nlines\n"
    )
    told = json.loads(piped.stdout)
    assert told["prompt"] == "Two\nlines"
    assert told["text"] == direct.stdout
    dash = invoke(
        "run", "-", *members, "--max-tokens", "8", "--fusion", "unite", stdin="Two\nlines"
    )
    assert dash.stdout == direct.stdout


def test_stdin_that_is_no_text_is_refused(invoke, members):
    result = invoke("run", *members, stdin=b"abc\xff")
    assert result.exit_code == 2
    assert "not UTF-8 (byte 0xff at 3)" in result.stderr


def test_json_tells_how_it_ended(invoke, members):
    result = invoke("run", PROMPT, *members, "--max-tokens", "12", "--fusion", "average", "--json")
    told = json.loads(result.stdout)
    assert told["text"] == expected(members, max_tokens=12, fusion="average")
    assert told["finish_reason"] == "length"
    assert told["model_name"] == "average(stories+baby)"
    usage, facts = told["usage"], told["ensemble"]
    assert usage["completion_tokens"] == facts["steps"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert sorted(facts["member_tokens"]) == ["baby", "stories"]


def test_settings_reach_the_answer(invoke, members):
    plain = invoke("run", PROMPT, *members, "--max-tokens", "30").stdout
    word = plain.split()[2]
    stopped = invoke("run", PROMPT, *members, "--max-tokens", "30", "--stop", word, "--json")
    told = json.loads(stopped.stdout)
    assert told["text"] == plain[: plain.index(word)]
    assert (told["finish_reason"], told["stop"]) == ("stop", word)
    sampled = ["--max-tokens", "20", "--temperature", "1.5", "--top-k", "50"]
    one, two, three = (
        invoke("run", PROMPT, *members, *sampled, "--seed", seed).stdout for seed in "112"
    )
    assert one == two != three
    alone = invoke("run", PROMPT, *members, "--max-tokens", "20", "--weights", "stories=1,baby=0")
    assert alone.stdout == expected(members[:2], max_tokens=20)
    other = invoke(
        "run", PROMPT, *members, "--max-tokens", "20", "--main", "baby", "--weights", "0,1"
    )
    assert other.stdout == expected(members[2:], max_tokens=20)


def test_a_configuration_file_does_the_same(invoke, members, tmp_path):
    path = tmp_path / "ensemble.yaml"
    llm = make_ensemble([m for m in members if m != "-m"], None, fusion="gac", max_tokens=10)
    llm.to_config(path)
    result = invoke("run", PROMPT, "-c", str(path))
    assert result.exit_code == 0
    assert result.stdout == expected(members, fusion="gac", max_tokens=10)


def test_a_prompt_longer_than_a_context_is_one_line(invoke, members):
    result = invoke("run", "a" * 300, *members)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "member 'baby'" in result.stderr
    assert "256" in result.stderr


def test_a_deadline_is_exit_1_after_what_was_said(invoke, members):
    result = invoke("run", PROMPT, *members, "--timeout", "0.0001")
    assert result.exit_code == 1
    assert "timeout of 0.0001 s passed" in result.stderr
    assert "nothing was decoded" in result.stderr
    assert ".partial" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_late_answer_is_on_stdout_as_far_as_it_goes(monkeypatch, capsys):
    """The last character is still held back when the deadline passes."""

    def stream(*_: object, **__: object):
        yield "one tw"
        raise DeadlineError("late (the partial text is in .partial)", ["one two"])

    engine = SimpleNamespace(load=lambda _: None)
    llm = MagicMock(engine=engine, stream=stream, timeout=2.0)
    with pytest.raises(DeadlineError, match=r"2 s passed .* is on stdout; raise --timeout"):
        run_of(llm, "", as_json=False)
    assert capsys.readouterr().out == "one two"
    with pytest.raises(DeadlineError, match="no JSON is written"):
        run_of(llm, "", as_json=True)
    assert capsys.readouterr().out == ""


def test_a_warning_is_one_line(invoke, members):
    result = invoke("run", "a b c" * 10, *members, "--max-tokens", "400", "--fusion", "unite")
    assert result.exit_code == 0
    warning = result.stderr
    assert warning.startswith("warning: ")
    assert warning.count("\n") == 1
    assert "'baby' has 256 positions" in warning


def test_any_locale_gives_utf8(environment):
    code = "from langchain_ensemble.cli.console import *; use_utf8(); say('é日'); say_error('ü')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.decode("utf-8") == "é日"
    assert done.stderr.decode("utf-8") == "error: ü\n"


def start(members: list[str], environment: dict[str, str], **settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "langchain_ensemble", "run", PROMPT, *members]
    return subprocess.Popen(
        [*command, "--max-tokens", "5000", "--weights", "1,0"], env=environment, **settings
    )


def test_a_reader_that_leaves_ends_it_quietly(members, environment):
    with start(members, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(5)
        running.stdout.close()
        assert running.wait(60) == 1
        assert running.stderr.read() == b""


def test_an_interrupt_is_exit_130_without_a_traceback(members, environment):
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(members, environment, **pipe) as running:
        assert running.stdout is not None
        running.stdout.read(5)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    if running.returncode == 0:
        pytest.skip("it had finished")
    assert running.returncode == 130
    assert b"Traceback" not in error


def test_a_terminal_also_sees_how_it_ended(members, environment):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "langchain_ensemble", "run", PROMPT, *members]
    with subprocess.Popen(
        [*command, "--max-tokens", "8"], env=environment, stdout=theirs, stderr=theirs
    ) as running:
        os.close(theirs)
        seen, deadline = b"", time.monotonic() + 100
        while time.monotonic() < deadline:
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the terminal is gone
                break
        assert running.wait(10) == 0
    os.close(ours)
    text = seen.decode()
    assert expected(members, max_tokens=8) in text.replace("\r\n", "\n")
    assert "8 steps fused" in text


@pytest.mark.parametrize("name", ["out.html", "out.json"])
def test_a_trace_is_written_beside_the_answer(invoke, members, tmp_path, name):
    asked = ("run", PROMPT, *members, "--max-tokens", "6", "--fusion", "average")
    plain = invoke(*asked)
    traced = invoke(*asked, "--trace", str(tmp_path / name))
    assert traced.stdout == plain.stdout
    written = (tmp_path / name).read_text("utf-8")
    if name.endswith("json"):
        assert Trace.from_json(written).text == plain.stdout
        assert Trace.from_json(written).prompt == PROMPT
    else:
        assert written.startswith("<!DOCTYPE html>")


def test_a_trace_without_a_folder_is_refused_before_any_work(invoke, tmp_path):
    result = invoke("run", PROMPT, "-m", "a/b", "--trace", str(tmp_path / "no" / "out.html"))
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


def test_an_unsure_answer_is_an_error(invoke, members, tmp_path):
    file = tmp_path / "ensemble.yaml"
    names = dict(m.split("=", 1) for m in members if m != "-m")
    settings = {"members": names, "fusion": "average", "max_tokens": 6, "abstain_below": 0.999}
    file.write_text(json.dumps(settings), "utf-8")
    result = invoke("run", PROMPT, "-c", str(file), "--trace", str(tmp_path / "out.json"))
    assert result.exit_code == 1
    assert "abstain_below=0.999" in result.stderr
    assert Trace.from_json((tmp_path / "out.json").read_text("utf-8")).text == result.stdout != ""
