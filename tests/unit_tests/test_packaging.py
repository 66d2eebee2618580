"""What a user installs: the wheel's content, its requirements, the commands of the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import langchain_ensemble

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MEBIBYTE = 2**20


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [n for n in wheel.namelist() if n.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_wheel_holds_every_source_file_types_and_members(wheel):
    names = set(wheel.namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "langchain_ensemble").rglob("*.py")}
    assert sources <= names
    assert "langchain_ensemble/py.typed" in names
    for member in ("stories", "facts"):
        for file in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
            assert f"langchain_ensemble/demo/{member}/{file}" in names
    for asset in ("page.css", "page.js"):
        assert f"langchain_ensemble/trace/{asset}" in names
    strangers = [n for n in names if not n.startswith("langchain_ensemble")]
    assert strangers == []


def test_each_demo_member_is_at_most_six_megabytes(wheel):
    for member in ("stories", "facts"):
        prefix = f"langchain_ensemble/demo/{member}/"
        size = sum(i.file_size for i in wheel.infolist() if i.filename.startswith(prefix))
        assert 1 * MEBIBYTE < size < 6_000_000


def test_metadata(wheel):
    head = message_from_string(metadata(wheel, "METADATA"))
    assert head["Name"] == "langchain-ensemble"
    assert head["Version"] == langchain_ensemble.__version__
    assert head["License-Expression"] == "MIT"
    assert head["Requires-Python"] == ">=3.11"
    needed = {normal(Requirement(r).name) for r in head.get_all("Requires-Dist", [])}
    assert {"torch", "transformers", "langchain-core", "huggingface-hub", "pydantic"} <= needed
    assert "langchain-ensemble = langchain_ensemble.cli:main" in metadata(wheel, "entry_points.txt")
    assert "MIT License" in metadata(wheel, "licenses/LICENSE")


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    rows = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for group in PROJECT["dependency-groups"].values():
        rows += group
    return [Requirement(row) for row in rows]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_what_ci_installs_within_the_ranges(requirement):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert normal(requirement.name) in pins
    assert requirement.specifier.contains(pins[normal(requirement.name)])


def test_no_constraint_names_a_local_build():
    assert "+" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_every_import_of_the_package_is_a_requirement():
    """What is imported at all is declared (extras included)."""
    extras = [Requirement(r) for rows in extra_rows() for r in rows]
    known = {normal(r.name) for r in (*requirements(), *extras)}
    spelled = {"yaml": "pyyaml", "langchain_core": "langchain-core"}
    found: dict[str, Path] = {}
    for path in (ROOT / "langchain_ensemble").rglob("*.py"):
        for top in re.findall(
            r"^\s*(?:import|from) ([a-zA-Z_0-9]+)", without_docstrings(path), re.MULTILINE
        ):
            if top not in sys.stdlib_module_names and top != "langchain_ensemble":
                found.setdefault(top, path)
    missing = {m: str(p) for m, p in found.items() if normal(spelled.get(m, m)) not in known}
    assert missing == {}


def extra_rows() -> list[list[str]]:
    return [r for name, r in PROJECT["project"]["optional-dependencies"].items() if name != "all"]


def without_docstrings(path: Path) -> str:
    return re.sub(r'"""(?:.|\n)*?"""', "", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "target",
    [
        *("demo", "demo-hub", "cookbook", "test", "acceptance"),
        *("lint", "type", "format", "bench", "gpu"),
    ],
)
def test_makefile_has_the_target_and_make_reads_it(target):
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target, "VENV=.no-such-venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "-m venv .no-such-venv" in done.stdout  # a clean clone makes its own environment
    torch_first = done.stdout.index("constraints.txt torch")
    assert torch_first < done.stdout.index("constraints.txt -e .")


def test_changelog_has_a_place_for_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert "keepachangelog.com" in text


def test_ci_is_executable_and_runs_all_three():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "for target in test lint type" in script.read_text(encoding="utf-8")
