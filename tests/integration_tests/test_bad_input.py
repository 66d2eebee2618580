"""What bad input gets: each row of the design's table, through the LLM, with its message."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_ensemble import ConfigError, EnsembleLLM, Member, MemberError
from langchain_ensemble.errors import MemoryLimitError
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.store import Store

PROMPT = "Once upon a time, there was a little"


def folder(shared: Path, name: str) -> str:
    return str(shared / "models" / name)


def two(shared: Path, **settings: Any) -> EnsembleLLM:
    members = [folder(shared, "stories260K"), folder(shared, "babyllama-361")]
    return EnsembleLLM(**{"members": members, "fusion": "average", "max_tokens": 8, **settings})


class TestMembersThatCannotBeHad:
    def test_folder_without_weights(self, shared: Path, tmp_path: Path) -> None:
        copy = tmp_path / "empty"
        shutil.copytree(
            folder(shared, "stories260K"), copy, ignore=shutil.ignore_patterns("*.safetensors")
        )
        llm = EnsembleLLM(members={"bare": str(copy)})
        with pytest.raises(MemberError, match=r"'bare'.*safetensors"):
            llm.invoke(PROMPT)

    def test_a_revision_of_a_folder(self, shared: Path) -> None:
        member = Member(folder(shared, "stories260K"), name="a", revision="v1")
        with pytest.raises(MemberError, match=r"member 'a' has revision='v1'.*is a folder here"):
            EnsembleLLM(members=[member]).load()

    def test_a_configuration_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot write the configuration"):
            EnsembleLLM.demo().to_config(tmp_path / "nowhere" / "x.yaml")

    def test_the_score_of_one_member_has_no_weights(self) -> None:
        with pytest.raises(ConfigError, match="score got member='facts' and weights="):
            EnsembleLLM.demo().score("a", member="facts", weights=(0.5, 0.5))

    def test_folder_that_is_not_there(self, tmp_path: Path) -> None:
        llm = EnsembleLLM(members={"gone": str(tmp_path / "nowhere")})
        with pytest.raises(MemberError, match="'gone'"):
            llm.invoke(PROMPT)

    def test_pickled_weights_are_refused(self, shared: Path, tmp_path: Path) -> None:
        copy = tmp_path / "pickled"
        shutil.copytree(
            folder(shared, "stories260K"), copy, ignore=shutil.ignore_patterns("*.safetensors")
        )
        torch.save({"a": torch.zeros(1)}, copy / "pytorch_model.bin")
        with pytest.raises(MemberError, match=r"'old'.*safetensors.*pytorch_model.bin.*convert"):
            EnsembleLLM(members={"old": str(copy)}).invoke(PROMPT)

    def test_own_code_is_refused(self, shared: Path, tmp_path: Path) -> None:
        copy = tmp_path / "code"
        shutil.copytree(folder(shared, "stories260K"), copy)
        config = json.loads((copy / "config.json").read_text())
        config["model_type"] = "mine"
        config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(MemberError, match=r"'code'.*trust_remote_code"):
            EnsembleLLM(members={"code": str(copy)}).invoke(PROMPT)

    def test_one_bad_member_frees_the_others(self, shared: Path, tmp_path: Path) -> None:
        from langchain_ensemble.members.registry import held

        before = set(held())
        members = {"good": folder(shared, "stories260K"), "gone": str(tmp_path / "nowhere")}
        with pytest.raises(MemberError, match="'gone'"):
            EnsembleLLM(members=members).invoke(PROMPT)
        assert set(held()) <= before  # what other tests held may be freed meanwhile


class TestWeights:
    @pytest.mark.parametrize(
        ("weights", "said"),
        [
            ([0.5, 0.6], r"sum to 1\.1 .*must sum to 1 within 1e-6"),
            ([1.0], r"1 entries for 2 members"),
            ([0.5, 0.3, 0.2], r"3 entries for 2 members"),
            ([-0.5, 1.5], r"'stories260K' is -0\.5; it must be a number of at least 0"),
            ([float("nan"), 1.0], r"'stories260K' is nan"),
            ({"stories260K": 0.5, "babyllama361": 0.5}, r"Did you mean 'babyllama-361'\?"),
            ({"stories260K": 1.0}, r"no entry for 'babyllama-361'"),
        ],
    )
    def test_wrong_weights_at_construction_and_per_call(
        self, shared: Path, weights: Any, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            two(shared, weights=weights)
        with pytest.raises(ConfigError, match=said):
            two(shared).invoke(PROMPT, weights=weights)

    def test_nearly_one_is_one(self, shared: Path) -> None:
        assert two(shared, weights=[0.7, 0.2 + 0.1]).invoke(PROMPT)


class TestPrompts:
    def test_too_long(self, shared: Path) -> None:
        with pytest.raises(ConfigError, match=r"'babyllama-361'.* 256 .*"):
            two(shared).invoke("word " * 100)

    def test_a_megabyte(self, shared: Path) -> None:
        with pytest.raises(ConfigError, match=r"'stories260K'.* 512 "):
            two(shared).invoke("word and " * 120_000)

    def test_lone_surrogate(self, shared: Path) -> None:
        with pytest.raises(ConfigError, match=r"(?i)surrogate.* 3"):
            two(shared).invoke("abc\ud800")

    def test_empty_prompt_starts_at_bos(self, shared: Path) -> None:
        text = two(shared, max_tokens=30).invoke("")
        assert text
        assert not text.startswith(" ")
        assert EnsembleLLM(members=[folder(shared, "stories260K")], max_tokens=5).invoke("")

    def test_empty_batch(self, shared: Path) -> None:
        assert two(shared).batch([]) == []
        assert two(shared).generate([]).generations == []

    def test_special_token_text_is_parsed_as_hugging_face_does(self, shared: Path) -> None:
        llm = two(shared)
        main = llm.engine._ready().members[0]
        assert main.prompt("a</s>b").ids == tuple(main.tokenizer("a</s>b")["input_ids"])
        assert 2 in main.prompt("a</s>b").ids
        assert "</s>" not in llm.invoke("a</s>b")
        assert 2 not in llm.get_token_ids("a</s>b")  # text of an answer is never a control id


class TestDeviceMemory:
    def test_while_decoding(self, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        llm = two(shared)
        expected = llm.invoke(PROMPT)
        original, calls = HFSession._forward, []

        def full(self: HFSession, *args: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:
                raise torch.OutOfMemoryError("tried to allocate 3.00 GiB")
            return original(self, *args)

        monkeypatch.setattr(HFSession, "_forward", full)
        with pytest.raises(
            MemoryLimitError, match=r"'(stories260K|babyllama-361)'.*3\.00 GiB.*use"
        ):
            llm.invoke(PROMPT)
        assert llm.invoke(PROMPT) == expected  # the ensemble stays usable


class TestDiskCache:
    def test_a_damaged_entry_is_rebuilt(
        self, shared: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings: dict[str, Any] = {"fusion": "deepen"}
        with two(shared, **settings) as llm:
            expected = llm.invoke(PROMPT)
        entries = sorted(Store().folder.rglob("*.safetensors"))
        assert entries
        for entry in entries:
            entry.write_bytes(entry.read_bytes()[:100])
        with (
            caplog.at_level("WARNING", logger="langchain_ensemble"),
            two(shared, **settings) as llm,
        ):
            assert llm.invoke(PROMPT) == expected
        assert any("is bad" in record.message for record in caplog.records)


class TestCallers:
    def test_one_that_stops_reading(self, shared: Path) -> None:
        llm = two(shared)
        expected = llm.invoke(PROMPT)
        for text in llm.stream(PROMPT):
            if text:
                break
        assert llm.invoke(PROMPT) == expected

    def test_many_threads(self, shared: Path) -> None:
        llm = two(shared)
        prompts = [PROMPT, "Tom", "One day, a cat"]
        expected = [llm.invoke(p) for p in prompts]
        got: dict[int, str] = {}

        def work(n: int) -> None:
            got[n] = "".join(llm.stream(prompts[n % 3])) if n % 2 else llm.invoke(prompts[n % 3])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == {n: expected[n % 3] for n in range(9)}


def test_unknown_names_list_the_known_ones(shared: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown fusion 'depen'. Did you mean 'deepen'\?"):
        two(shared, fusion="depen")
    with pytest.raises(ConfigError, match=r"'max_tokns'. Did you mean 'max_tokens'"):
        two(shared, max_tokns=3)
    with pytest.raises(ConfigError, match=r"'revison'. Did you mean 'revision'"):
        Member("gpt2", revison="main")
