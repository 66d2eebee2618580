from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from langchain_core.messages import AIMessageChunk

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.cli.chat import TOYS
from langchain_ensemble.cli.thoughts import Thoughts

ASKED = ("What is the capital of Japan?", "And where is it?")
SHORT = ("--max-tokens", "24")


@pytest.fixture(scope="module")
def llm() -> Iterator[ChatEnsemble]:
    with ChatEnsemble.demo(max_tokens=24) as llm:
        yield llm


def test_a_pipe_is_a_conversation_of_a_turn_a_line(process, llm):
    done = process("chat", *SHORT, input="\n".join(ASKED).encode())
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().split() == TOYS.split()  # wrapped, and nothing else
    first = llm.invoke(ASKED[0])
    second = llm.invoke([("user", ASKED[0]), ("ai", first.text), ("user", ASKED[1])])
    assert done.stdout.decode() == f"{first.text}\n{second.text}\n"
    assert "Tokyo" in first.text


def test_reset_forgets_and_empty_lines_say_nothing(invoke, llm):
    told = invoke("chat", *SHORT, stdin=f"{ASKED[0]}\n\n/reset\n{ASKED[1]}\n/exit\nnot read\n")
    assert told.exit_code == 0
    assert told.stdout == f"{llm.invoke(ASKED[0]).text}\n{llm.invoke(ASKED[1]).text}\n"


def test_a_system_text_is_set_replaced_and_taken_away(invoke, llm):
    lines = f"{ASKED[0]}\n/reset\n/system Be brief.\n{ASKED[0]}\n/reset\n/system\n{ASKED[0]}\n"
    told = invoke("chat", *SHORT, "--system", "Answer the question.", stdin=lines)
    expected = [
        llm.invoke([("system", "Answer the question."), ("user", ASKED[0])]),
        llm.invoke([("system", "Be brief."), ("user", ASKED[0])]),
        llm.invoke(ASKED[0]),
    ]
    assert told.stdout == "".join(f"{message.text}\n" for message in expected)


def test_members_tells_what_each_would_answer_to_the_last_message(invoke, llm):
    told = invoke("chat", *SHORT, stdin=f"/members\n{ASKED[0]}\n{ASKED[1]}\n/members\n")
    assert "nothing was asked yet" in told.stderr
    first = llm.invoke(ASKED[0]).text
    asked = [("user", ASKED[0]), ("ai", first), ("user", ASKED[1])]
    alone = [f"{name}: {llm.solo(name).invoke(asked).text}\n" for name in ("facts", "stories")]
    assert told.stdout.endswith("".join(alone))


def test_an_unknown_command_is_an_error_that_names_the_nearest(invoke):
    told = invoke("chat", *SHORT, stdin="/memebrs\n")
    assert told.exit_code == 2
    assert "error: unknown command '/memebrs'" in told.stderr
    assert "/members" in told.stderr


def test_a_space_makes_a_message_of_what_looks_like_a_command(invoke, llm):
    told = invoke("chat", *SHORT, stdin=" /etc is a town.\n")
    assert told.stdout == f"{llm.invoke(' /etc is a town.').text}\n"


def test_help_lists_every_command(invoke):
    told = invoke("chat", *SHORT, stdin="/help\n")
    assert told.stdout == ""
    for command in ("/reset", "/system", "/members", "/help", "/exit"):
        assert command in told.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [(b"\xff\n", "line 2 of stdin is not UTF-8 (byte 0xff at 0)"), (b"a " * 3000, "2048")],
    ids=["no text", "too long"],
)
def test_what_cannot_be_answered_ends_a_script_on_one_line(invoke, line, named):
    told = invoke("chat", *SHORT, stdin=b"Hi there!\n" + line)
    assert told.exit_code == 2
    errors = [text for text in told.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert named in errors[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--thinking", "loud"), "thinking"), (("--weights", "facts=2"), "weights")],
)
def test_a_wrong_setting_is_one_line_before_anything_is_loaded(invoke, options, named):
    told = invoke("chat", *options, stdin="Hi there!\n")
    assert told.exit_code == 2
    assert named in told.stderr
    assert told.stdout == ""


def test_members_of_a_configuration_file(invoke, llm, tmp_path):
    path = tmp_path / "ensemble.yaml"
    llm.to_config(path)
    told = invoke("chat", "-c", str(path), stdin=ASKED[0])
    assert told.stdout == f"{llm.invoke(ASKED[0]).text}\n"
    assert told.stderr == ""


# --- thoughts ---------------------------------------------------------------------------------


def thought(**said: object) -> AIMessageChunk:
    return AIMessageChunk(content="", additional_kwargs=said)


def test_thoughts_go_beside_the_answer_one_member_after_the_other(capsys):
    thoughts = Thoughts("a")
    thoughts.add(thought(thoughts={"b": "two "}))
    assert capsys.readouterr().err == "b thinks: two "
    thoughts.add(thought(reasoning_content="one "))
    thoughts.add(thought(thoughts={"b": "and more"}))
    assert capsys.readouterr().err == "and more"
    thoughts.add(thought(reasoning_content="[red]1[/red]"))
    thoughts.end()
    out, err = capsys.readouterr()
    assert err == "\na thinks: one [red]1[/red]\n"
    assert out == ""
    thoughts.end()
    assert capsys.readouterr().err == ""


# --- a terminal -------------------------------------------------------------------------------


class Terminal:
    """The command on a pseudo-terminal: what is typed, what is seen."""

    def __init__(self, environment: dict[str, str], *options: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "langchain_ensemble", "chat", *options]
        self.process = subprocess.Popen(
            command, env=environment | {"TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, done: Callable[[str], bool]) -> str:
        """What was seen since the last time, once it is enough or the program has ended."""
        seen, deadline = b"", time.monotonic() + 60
        while not done(seen.decode(errors="ignore")):
            if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                pytest.fail(f"waited for more than {seen.decode(errors='ignore')!r}")
            try:
                seen += os.read(self._ours, 4096)
            except OSError:  # the terminal is gone
                break
        return seen.decode().replace("\r\n", "\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)


@pytest.fixture
def terminal(environment) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: str) -> Terminal:
        opened.append(Terminal(environment, *options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def prompted(seen: str) -> bool:
    return seen.endswith("> ")


def test_a_terminal_sees_answers_ends_and_errors_and_goes_on(terminal, llm):
    talk = terminal(*SHORT)
    assert "/help lists the commands" in talk.until(prompted)
    talk.type(f"{ASKED[0]}\n")
    seen = talk.until(prompted)
    assert llm.invoke(ASKED[0]).text in seen
    assert "of steps fused" in seen
    talk.type("/memebrs\n")
    assert "error: unknown command" in talk.until(prompted)
    talk.type("\x04")  # Ctrl-D
    talk.until(lambda _: False)
    assert talk.process.wait(30) == 0


def test_an_interrupt_stops_the_answer_and_not_the_program(terminal):
    talk = terminal("--repetition-penalty", "1.3")
    talk.until(prompted)
    talk.type("Tell me a story about a dog.\n")
    talk.until(lambda seen: "\n" in seen and len(seen.split("\n")[-1]) > 20)  # after the echo
    talk.process.send_signal(signal.SIGINT)
    assert "stopped" in talk.until(prompted)
    time.sleep(0.5)  # until it waits for a line, and does not only show that it will
    talk.process.send_signal(signal.SIGINT)  # at the prompt
    assert "/exit leaves" in talk.until(prompted)
    talk.type(f"{ASKED[0]}\n")
    assert "of steps fused" in talk.until(prompted)
    talk.type("/exit\n")
    assert talk.process.wait(30) == 0
