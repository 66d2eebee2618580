"""What a demanding user ran into once: each stays fixed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble import ConfigError, EnsembleLLM, EnsembleWarning, Member, MemberError
from langchain_ensemble.adapter.settings import FUSION_SETTINGS
from langchain_ensemble.fusion import FUSIONS
from langchain_ensemble.fusion.base import FusedDistribution, Needs
from langchain_ensemble.params import EnsembleParams, name_members

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time, there was a little"


def folder(shared: Path, name: str) -> str:
    return str(shared / "models" / name)


def two(shared: Path, **settings: Any) -> EnsembleLLM:
    members = {"s": folder(shared, "stories260K"), "b": folder(shared, "babyllama-361")}
    return EnsembleLLM(**{"members": members, "fusion": "average", "max_tokens": 4, **settings})


def test_a_script_that_drops_its_ensemble_ends_well(shared: Path) -> None:
    program = f"""
from langchain_ensemble import EnsembleLLM
members = [{folder(shared, "stories260K")!r}, {folder(shared, "babyllama-361")!r}]
def main():
    llm = EnsembleLLM(members=members, fusion="average", max_tokens=3)
    print(llm.solo("stories260K").invoke("Once"), llm.invoke("Once"))
main()
EnsembleLLM(members=members, fusion="gac", max_tokens=2).invoke("x")
"""
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "terminate" not in ran.stderr
        assert "Traceback" not in ran.stderr


class TestSecrets:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Member(token="hf_secret"),
            lambda: name_members({"s": {"token": "hf_secret"}}),
            lambda: Member("a", token=["hf_secret"]),
            lambda: EnsembleLLM(members={"s": {"token": "hf_secret"}}),
            lambda: EnsembleLLM(members={"s": {"model": "a", "token": ["hf_secret"]}}),
            lambda: EnsembleLLM(members=["a"], hf_token=["hf_secret"]),
        ],
    )
    def test_no_error_shows_a_token(self, make: Any) -> None:
        with pytest.raises(ConfigError) as info:
            make()
        assert "hf_secret" not in str(info.value)
        assert "hf_secret" not in repr(info.value.__context__)

    def test_a_member_without_a_model_is_named(self) -> None:
        with pytest.raises(ConfigError, match="member 's' has no model"):
            name_members({"s": {"dtype": "float32"}})


class TestText:
    def test_a_prompt_that_a_member_cannot_spell_warns(self, shared: Path) -> None:
        llm = EnsembleLLM(members=[folder(shared, "babyllama-105")], max_tokens=2)
        with pytest.warns(EnsembleWarning, match="'babyllama-105' cannot spell all of the prompt"):
            llm.invoke("I like 🐶")

    def test_score_of_unspellable_or_broken_text(self, shared: Path) -> None:
        members = {"s": folder(shared, "stories260K"), "a": folder(shared, "babyllama-105")}
        llm = EnsembleLLM(members=members, fusion="average")
        with pytest.raises(ConfigError, match="'a' cannot spell"):
            llm.score("I am 🐶", member="a")
        with pytest.raises(ConfigError, match="lone surrogate"):
            llm.score("\ud83d")
        with pytest.raises(ConfigError, match="give a str"):
            llm.score(b"abc")  # type: ignore[arg-type]


class TestMembers:
    def test_paths_and_names(self, shared: Path) -> None:
        path = shared / "models" / "stories260K"
        assert EnsembleLLM(members=[path]).params.names == ("stories260K",)
        assert Member(path).model == str(path)
        taken = name_members([str(path), Member("x", name="stories260K")])
        assert [m.name for m in taken] == ["stories260K-2", "stories260K"]
        for bad in ([""], {"": "a"}, {False: "a"}):
            with pytest.raises(ConfigError):
                name_members(bad)

    @pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", "cpu"])
    def test_a_device_map_changes_no_word(self, shared: Path, device_map: Any) -> None:
        path = folder(shared, "stories260K")
        spread = Member(path, device_map=device_map, dtype="float32")
        plain = EnsembleLLM(members=[path], max_tokens=8).invoke(PROMPT)
        assert EnsembleLLM(members=[spread], max_tokens=8).invoke(PROMPT) == plain
        with pytest.raises(ConfigError, match=r"device='cpu' and device_map='auto'; give one"):
            Member(path, device="cpu", device_map="auto")

    def test_a_system_prompt_says_that_it_has_no_effect(self, shared: Path) -> None:
        llm = EnsembleLLM(
            members=[Member(folder(shared, "stories260K"), system="Be kind.")], max_tokens=2
        )
        with pytest.warns(EnsembleWarning, match="system= of members 'stories260K' has no effect"):
            llm.invoke("Once")

    def test_counting_tokens_holds_no_weights(self, shared: Path) -> None:
        counting, using = two(shared), two(shared)
        counting.get_num_tokens("Once upon")
        using.invoke(PROMPT)
        using.unload()
        assert not using.engine.loaded


class TestFusions:
    def test_unknown_settings_are_refused_at_construction(self, shared: Path) -> None:
        with pytest.raises(ConfigError, match=r"'unionk'. Did you mean 'union_k'"):
            two(shared, fusion={"name": "unite", "unionk": 3})

    def test_the_table_of_settings_is_the_fusions_own(self) -> None:
        for name, kind in FUSIONS.items():
            assert FUSION_SETTINGS[name] == tuple(f.name for f in fields(kind))

    def test_a_fusion_that_is_none(self, shared: Path) -> None:
        class Half:
            name = "half"
            needs = Needs()

            def settings(self) -> dict[str, Any]:
                return {}

            def prepare(self, context: Any) -> Any:
                return lambda distributions, weights: distributions[0]

        with pytest.raises(ConfigError, match=r"'half': prepare\(\) gave a function"):
            two(shared, fusion=Half()).invoke(PROMPT)

    @pytest.mark.parametrize("wrong", ["nan", "tensor"])
    def test_a_fusion_that_gives_nonsense(self, shared: Path, wrong: str) -> None:
        class Fuser:
            def __init__(self, space: Any) -> None:
                self.space = space

            def __call__(self, distributions: Any, weights: torch.Tensor) -> Any:
                rows = torch.full((len(weights), self.space.width), float("nan"))
                return (
                    rows if wrong == "tensor" else FusedDistribution(self.space, rows, rows[:, 0])
                )

            def score(self, *_: Any) -> torch.Tensor:
                return torch.zeros(1)

        class Sick:
            name = "sick"
            needs = Needs()

            def settings(self) -> dict[str, Any]:
                return {}

            def prepare(self, context: Any) -> Fuser:
                return Fuser(context.alignment.space)

        error = MemberError if wrong == "nan" else ConfigError
        with pytest.raises(error, match="fusion gave"):
            two(shared, fusion=Sick()).invoke(PROMPT)


def test_unknown_weights_and_stop_none(shared: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights.*'equal'.*'uniform'"):
        two(shared, weights="equal")
    assert two(shared, stop=None).invoke(PROMPT)
    assert EnsembleParams(members=["a", "b"]).names == ("a", "b")
