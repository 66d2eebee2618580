"""What README and docs say is true: snippets run, commands exist, the file tree is the tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel

from langchain_ensemble import ChatEnsemble
from langchain_ensemble.adapter.outputs import ending_info, logprob_entries
from langchain_ensemble.confidence import FEATURES, confidence_of
from langchain_ensemble.decoding.records import Finish, TokenRecord, Usage
from langchain_ensemble.params import FUSIONS, EnsembleParams, Member, RequestParams
from langchain_ensemble.testing import FusionContract
from langchain_ensemble.trace import summary

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(language: str) -> list[tuple[str, str]]:
    """(page and number, code) of every fenced block of a language."""
    found = []
    for page in PAGES:
        blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        found += [(f"{page.name}-{number}", code) for number, code in enumerate(blocks, 1)]
    return found


PYTHON = snippets("python")


BETA = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")


@BETA
@pytest.mark.parametrize("code", [c for _, c in PYTHON], ids=[n for n, _ in PYTHON])
def test_snippet_runs_offline(code, capsys):
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    printed = capsys.readouterr().out
    assert bool(printed.strip()) == ("print(" in code)


def test_documented_fusion_keeps_the_laws(tmp_path):
    (code,) = [c for name, c in PYTHON if name.startswith("fusions.md") and "Fuser:" in c]
    (contract,) = [c for name, c in snippets("py") if name.startswith("fusions.md")]
    (tmp_path / "surest.py").write_text(code.split("\n\nllm = ")[0], "utf-8")
    (tmp_path / "test_surest.py").write_text(contract, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_surest.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    laws = [name for name in dir(FusionContract) if name.startswith("test_")]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= len(laws) - 1, done.stdout  # all but the oracle, which it does not give
    assert set(re.findall(r"SKIPPED \[\d+\] .*: (.*)", done.stdout)) == {"no oracle given"}


@BETA
def test_documented_dump_comes_back_equal(capsys):
    (code,) = [c for _, c in PYTHON if "dumps(llm)" in c]
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out == "True\n"


def test_settings_page_names_what_comes_back():
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    section = page.split("## What comes back beside the text")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
    usage = Usage(1, 1, 1, 1)
    info = ending_info(Finish("stop", "x", b"\xc3", "small"), usage, "gac(small)")
    assert rows == {*info, "logprobs"}
    step = TokenRecord(1, b"a", -0.5, {"small": None}, True)
    named = {*info["usage"], *info["ensemble"], *logprob_entries([step])[0]}
    assert sorted(name for name in named if f"`{name}`" not in section) == []


def test_chat_page_names_what_comes_back():
    page = (ROOT / "docs/chat.md").read_text("utf-8")
    section = page.split("## What comes back")[1].split("\n## ")[0]
    with ChatEnsemble.demo(max_tokens=2, logprobs=True, trace=True) as chat:
        message = chat.invoke("Hi there!")
    told = message.response_metadata
    named = {*told["ensemble"], *told["token_usage"], *(message.usage_metadata or {})}
    assert sorted(name for name in named if f"`{name}`" not in section) == []
    assert sorted(name for name in told if f'["{name}"]' not in section) == []


def test_confidence_page_names_what_comes_back():
    page = (ROOT / "docs/confidence.md").read_text("utf-8")
    step = TokenRecord(1, b"a", -0.5, {"small": -0.5}, True, disagreement=0.5)
    named = {*confidence_of([step]).to_dict(), *summary([step], [0.1]), *FEATURES, "least_sure"}
    named |= set(summary([step], [0.1])["least_sure"][0])
    assert sorted(name for name in named if f"`{name}`" not in page) == []


def test_confidence_page_quotes_the_benchmark():
    rows = json.loads((ROOT / "benchmarks/results/confidence.json").read_text("utf-8"))["rows"]
    page = (ROOT / "docs/confidence.md").read_text("utf-8").replace("**", "")
    assert rows
    for row in rows:
        cells = " | ".join(f"{value:.3f}" for value in row["auroc"].values())
        wrong = f"{row['wrong']} of {row['items']}"
        assert f"| {row['pair']} | {row['fusion']} | {wrong} | {cells} |" in page


def test_chat_page_says_every_default():
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M))
    known = {*EnsembleParams.model_fields, *Member.model_fields, *RequestParams.model_fields}
    own = set(ChatEnsemble.model_fields) - set(BaseChatModel.model_fields) - known - {"hf_token"}
    assert own
    for name in own:
        default = str(ChatEnsemble.model_fields[name].default)
        assert default in rows[name].replace('"', ""), name


def test_first_snippet_is_six_lines_and_says_what_it_should(capsys):
    code = snippets("python")[0][1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    exec(compile(code, "snippet", "exec"), {})
    assert "Paris" in capsys.readouterr().out


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def test_commands_exist():
    shell = "\n".join(code for _, code in snippets("bash"))
    for line in re.findall(r"^make ([a-z -]+?)(?:\s*#|$)", shell, re.M):
        assert set(line.split()) <= make_targets(), line
    assert "make demo" in shell
    assert "make test" in shell
    assert (ROOT / ".ci/run").exists()


def test_subcommands_exist():
    shell = "\n".join(code for _, code in snippets("bash"))
    named = sorted(set(re.findall(r"^langchain-ensemble ([a-z]+)", shell, re.M)))
    assert named
    for command in named:
        done = subprocess.run(
            [sys.executable, "-m", "langchain_ensemble", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_table_names_every_fusion():
    rows = re.findall(r"^\| (`\"\w+\"`.*?) \|", README, re.M)
    assert sorted(re.findall(r"`\"(\w+)\"`", " ".join(rows))) == sorted(FUSIONS)
    papers = re.findall(r"https://arxiv\.org/abs/(\d+\.\d+)", README)
    assert papers == ["2404.12715", "2410.03777", "2406.12585"]


def test_file_tree_is_the_tree():
    block = re.search(r"^```\nlangchain_ensemble/\n(.*?)^```", README, re.M | re.S)
    assert block
    inner = re.findall(r"^[├└]── (\S+)", block[1], re.M)
    package = ROOT / "langchain_ensemble"
    assert [n for n in inner if not (package / n).exists()] == []
    outer = re.findall(r"^(\w+)/ ", block[1], re.M)
    assert [n for n in outer if not (ROOT / n).is_dir()] == []
    there = {p.name + "/" * p.is_dir() for p in package.iterdir() if p.name[0] not in "_."}
    assert sorted(there - set(inner) - {"py.typed"}) == []


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_first_sentence_is_the_projects_description():
    description = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    sentence = description["description"].removesuffix(".")
    assert sentence.split(",")[0] in README.splitlines()[2]


@pytest.mark.parametrize("settings", [Member, EnsembleParams, RequestParams])
def test_settings_page_names_every_setting_and_its_default(settings):
    page = (ROOT / "docs/settings.md").read_text("utf-8").split("## What comes back")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M))
    for name, field in settings.model_fields.items():
        assert name in rows, name
        if not field.is_required() and field.default is not None:
            default = "()" if field.default == () else str(field.default)
            assert default in rows[name].replace("`", "").replace('"', ""), (name, rows[name])


def test_docs_quote_the_benchmark_as_it_was_run():
    rows = json.loads((ROOT / "benchmarks/results/bits_per_byte.json").read_text("utf-8"))
    page = (ROOT / "docs/fusions.md").read_text("utf-8")
    quoted = {
        (main, fusion): [cell.replace("*", "") for cell in cells]
        for main, fusion, *cells in re.findall(
            r"^\| (\S+) \| ([a-z ]+) \| (\S+) \| (\S+) \| \S+ \|$", page, re.M
        )
    }
    assert rows
    for row in rows:
        cell = quoted[row["main"], row["fusion"]][row["open_boundaries"] == "vote"]
        assert cell == f"{row['bits_per_byte']:.3f}", row["fusion"]
