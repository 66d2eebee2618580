"""The demo shows what it says: every part, everybody who speaks, nothing scripted."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from rich.console import Console

from langchain_ensemble import ChatEnsemble, ConfigError, EnsembleLLM, demo
from langchain_ensemble.demo import hub, scenes
from langchain_ensemble.demo.__main__ import TOYS, main
from langchain_ensemble.demo.profiles import FACTS, MORE, profiles
from langchain_ensemble.demo.retrieval import HashedWords
from langchain_ensemble.demo.stage import EMPTY, LABEL, Stage
from langchain_ensemble.demo.tools import calculator, country_fact
from tests import chat_pico
from tests.hub_server import Repo, serve

SPEAKERS = ("together", "facts", "stories")


@pytest.fixture(scope="module")
def tour() -> str:
    """All that ``make demo`` prints, by one process."""
    done = subprocess.run(
        [sys.executable, "-m", "langchain_ensemble.demo"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode()


def parts(text: str) -> list[str]:
    return re.split(r"^\d\. ", text, flags=re.M)


def speakers(text: str) -> list[str]:
    """Who speaks, in order, a speaker's lines one after the other counted once."""
    said = [m[1] for line in text.splitlines() if (m := re.match(r" *(\w+) ", line[: LABEL + 1]))]
    named = [name for name in said if name in SPEAKERS]
    return [name for i, name in enumerate(named) if named[i - 1 : i] != [name]]


def test_the_tour_says_that_its_members_are_toys_first(tour):
    told = " ".join(parts(tour)[0].split())
    assert told.startswith(TOYS.format(names="facts and stories"))
    assert "TOY members" in told
    assert "scripted" in told


def test_everybody_speaks_in_every_part(tour):
    _, chain, rag, agent, structured = parts(tour)
    assert speakers(chain) == list(SPEAKERS)
    assert speakers(rag) == [*SPEAKERS, *SPEAKERS, "together"]
    assert speakers(agent) == list(SPEAKERS)
    assert speakers(structured) == list(SPEAKERS)


def test_every_part_says_what_was_free_and_what_a_grammar_enforced(tour):
    chain, rag, agent, structured = (" ".join(part.split()) for part in parts(tour)[1:])
    assert "Free generation; no grammar." in chain
    assert "Free generation; no grammar." in rag
    assert "Whether to call is free" in agent
    assert "under the grammar of the tools" in agent
    assert "The grammar of the JSON schema holds" in structured


def test_the_ensemble_says_what_a_user_may_expect(tour):
    _, chain, rag, agent, structured = parts(tour)
    assert "together The capital of Japan is Tokyo." in chain
    assert re.search(r"together .*1934", rag)
    assert "together calls calculator(expression='12 * 34')" in agent
    assert re.search(r"together .*408", agent)
    assert "together Note(name='Bova', city='Namche', year=1934)" in structured


def test_your_own_questions_take_the_place_of_the_tour(capsys):
    assert main(["What is the capital of Japan?", "Good morning!"]) == 0
    out = capsys.readouterr().out
    assert speakers(out) == [*SPEAKERS, *SPEAKERS]
    assert "you Good morning!" in out
    assert "1. " not in out


def test_the_text_interface_goes_on_in_raw_text():
    with EnsembleLLM.demo(fusion="unite", max_tokens=30) as llm:  # no warning of chat templates
        pieces = list(llm.stream(demo.PROMPTS["a country"]))
        assert len([piece for piece in pieces if piece]) > 2
        assert "".join(pieces) == llm.invoke(demo.PROMPTS["a country"])


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [(["--fusion", "mean"], 2, "mean"), (["--device", "cuda:99"], 2, "cuda:99")],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(arguments, code, named, capsys):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert error.count("\n") == 1


# --- retrieval --------------------------------------------------------------------------------

ASKED = {
    "When was Tamba Bridge built?": "Peru",
    "Who is the best friend of Pemba?": "Nepal",
    "How old is Linh?": "Vietnam",
    "Who founded Zawadi?": "Kenya",
    "What is the job of Gunnar?": "Iceland",
}


@pytest.mark.parametrize("question", ASKED)
def test_the_retriever_finds_the_profile_that_knows(question):
    first, _ = scenes.retriever().invoke(question)
    assert first.id == ASKED[question]
    assert first.page_content == profiles()[ASKED[question]]


def test_embeddings_are_the_same_in_every_process():
    code = (
        "from langchain_ensemble.demo.retrieval import HashedWords; "
        "print(HashedWords().embed_query('the blue bridge'))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.decode()
        for seed in "12"
    }
    assert found == {f"{HashedWords().embed_query('the blue bridge')}\n"}


def test_embeddings_have_length_one_or_nothing_to_say():
    (one, none) = HashedWords().embed_documents(["Lima, Lima and Peru!", " ... "])
    assert sum(x * x for x in one) == pytest.approx(1)
    assert not any(none)
    assert one == HashedWords().embed_query("peru AND lima lima")


def test_profiles_are_short_and_hold_every_fact():
    for country, text in profiles().items():
        assert len(text) < 300
        assert all(value in text for value in FACTS[country].values())
        assert MORE[country] in text


# --- tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 * 34", "408"), ("-(2 + 3.5) / 2", "-2.75"), ("1 / 3", "0.3333333333"), (" 7", "7")],
)
def test_calculator(expression, value):
    assert calculator.invoke({"expression": expression}) == value


@pytest.mark.parametrize(
    "expression",
    ["2 ** 9", "__import__('os')", "'a' * 9", "1 / 0", "1 +", "len", "x", "True and 1", "9" * 5000],
)
def test_calculator_runs_no_code_and_says_what_is_wrong(expression):
    assert calculator.invoke({"expression": expression}).startswith("Error: ")


def test_country_fact():
    assert country_fact.invoke({"country": "Peru", "field": "capital"}) == "Lima"
    assert "Iceland" in country_fact.invoke({"country": "Nowhere", "field": "capital"})
    assert "capital" in country_fact.invoke({"country": "Peru", "field": "colour"})


class Scripted:
    """An agent that gives what LangGraph gives."""

    def __init__(self, *events: object) -> None:
        self.events = events

    def stream(self, *_: object, **__: object):
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


def test_steps_of_an_agent_are_told_as_they_happen():
    call = {"name": "calculator", "args": {"expression": "1"}, "id": "c"}
    called = AIMessage("", tool_calls=[call])
    agent = Scripted(
        ("messages", (AIMessageChunk(""), {})),
        ("updates", {"model": {"messages": [called]}}),
        ("updates", {"tools": {"messages": [ToolMessage("1", tool_call_id="c")]}}),
        ("messages", (AIMessageChunk("It is"), {})),
        ("messages", (AIMessageChunk(" 1."), {})),
        ("updates", {"model": {"messages": [AIMessage("It is 1.")]}}),
        RecursionError("limit"),
    )
    *told, (kind, last) = scenes.steps(agent, "1?")
    assert told == [
        ("call", "calls calculator(expression='1')"),
        ("result", "1"),
        ("text", "It is"),
        ("text", " 1."),
    ]
    assert (kind, "8 steps" in last) == ("result", True)


def test_without_langchain_the_agent_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain.agents", None)
    with pytest.raises(ConfigError, match=r'pip install "langchain-ensemble\[demo\]"'):
        scenes.agent(ChatEnsemble.demo())


# --- the stage --------------------------------------------------------------------------------


def test_the_stage_shows_texts_as_they_are():
    out = io.StringIO()
    stage = Stage(Console(file=out, width=60))
    stage.title("A [b]title[/b]", "what")
    assert stage.show("me", iter([" a", "\n[red]b[/red]"])) == "a\n[red]b[/red]"
    stage.show("you", iter([]))
    stage.line("tool", "[1, 2]")
    title, what, *lines = out.getvalue().strip().splitlines()
    assert title.startswith("A [b]title[/b]")
    assert what == "what"
    assert lines == [
        "       me a",
        "          [red]b[/red]",
        f"      you {EMPTY}",
        "     tool [1, 2]",
    ]


# --- the Hub ----------------------------------------------------------------------------------


def run_hub(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    own = {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "langchain_ensemble.demo", "--hub", *arguments],
        env=clean | own | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_without_a_network_the_hubs_members_are_one_clear_line(tmp_path):
    done = run_hub(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "member 'qwen': 'Qwen/Qwen2.5-0.5B-Instruct'" in done.stderr
    assert done.stdout == ""


def test_the_hubs_members_are_downloaded_and_play_every_part(tmp_path):
    qwen = chat_pico.build("llama", tmp_path / "q", chat_pico.QWEN, chat_pico.QWEN_MARKERS)
    smol = chat_pico.build("neox", tmp_path / "s", chat_pico.ZEPHYR, chat_pico.ZEPHYR_MARKERS)
    with serve() as server:
        for name, folder in zip(hub.MEMBERS.values(), (qwen, smol), strict=True):
            server.repos[name] = Repo({"main": folder})
        done = run_hub(tmp_path, "--device", "cpu", HF_ENDPOINT=server.url)
        assert server.gets("model.safetensors") == 2
    assert done.returncode == 0, done.stderr
    assert "together = deepen(qwen+smollm)" in done.stdout
    assert "TOY" not in done.stdout
    assert len(parts(done.stdout)) == 5
    for name in ("together", "qwen", "smollm"):
        assert len(re.findall(rf"^ *{name} ", done.stdout, re.M)) >= 4


@pytest.mark.gpu
def test_the_tour_on_an_accelerator(capsys):
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("no accelerator")
    assert main(["--device", "auto"]) == 0
    assert "together The capital of Japan is Tokyo." in capsys.readouterr().out
