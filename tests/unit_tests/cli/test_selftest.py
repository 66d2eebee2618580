"""``selftest`` passes on good members, and names what is wrong with broken ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from langchain_ensemble.cli.selftest import Result, results_of
from langchain_ensemble.fusion.average import AverageFuser
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.params import EnsembleParams
from langchain_ensemble.vocab.vocabulary import Vocabulary

ONE = ("one member = generate", "cached = uncached", "batch = single", "END honoured")
ALL = ("bytes of all members equal", "batch = single", "END honoured")


@pytest.fixture
def params(shared) -> EnsembleParams:
    models = {"stories": "stories260K", "baby": "babyllama-361"}
    folders = {name: str(shared / "models" / folder) for name, folder in models.items()}
    return EnsembleParams(members=folders, fusion="average")


def failed(results: Iterator[Result]) -> list[tuple[str, str]]:
    listed = list(results)
    assert [r.what for r in listed] == [*ONE, *ONE, *ALL]
    return [(r.what, r.who) for r in listed if not r.good]


def test_real_members_pass(invoke, members):
    result = invoke("selftest", *members)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "11 passed, 0 failed" in result.stdout
    assert "72 tokens equal" in result.stdout
    assert "FAIL" not in result.stdout


@pytest.mark.parametrize(
    ("kinds", "fusion"), [(["llama", "qwen2"], "unite"), (["neox", "gpt2"], "deepen")]
)
def test_pico_members_pass(pico, kinds, fusion):
    folders = {kind: str(pico(kind)) for kind in kinds}
    results = list(results_of(EnsembleParams(members=folders, fusion=fusion)))
    assert [r for r in results if not r.good] == []
    assert len(results) == 2 * len(ONE) + len(ALL)


def test_one_member_alone_passes(invoke, members):
    result = invoke("selftest", *members[:2])
    assert result.exit_code == 0
    assert "4 passed, 0 failed" in result.stdout


def test_a_cache_that_forgets_to_roll_back_fails(monkeypatch, params):
    def keeps(self: HFSession, lengths: Any) -> None:
        self.lengths = [max(1, n - 1) for n in lengths]

    monkeypatch.setattr(HFSession, "truncate", keeps)
    found = failed(results_of(params))
    assert ("cached = uncached", "stories") in found
    assert ("cached = uncached", "baby") in found
    assert ("batch = single", "stories") not in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_that_are_off_by_one_fail(monkeypatch, params, dtype):
    forward = HFSession._forward

    def shifted(self: HFSession, ids: Any, lengths: Any, keep: int) -> Any:
        moved = [n + 1 if n else 0 for n in lengths]
        return forward(self, ids, moved, keep)

    monkeypatch.setattr(HFSession, "_forward", shifted)
    lower = [member.model_copy(update={"dtype": dtype}) for member in params.members]
    found = failed(results_of(EnsembleParams(members=lower, fusion="average")))
    assert ("one member = generate", "stories") in found
    assert ("cached = uncached", "stories") in found
    assert ("cached = uncached", "baby") in found


def test_a_failure_is_a_line_and_exit_1(monkeypatch, invoke, members):
    monkeypatch.setattr(HFSession, "truncate", lambda self, lengths: None)
    result = invoke("selftest", *members[:2])
    assert result.exit_code == 1
    assert result.stdout.count("FAIL") == 1
    assert "cached = uncached" in next(x for x in result.stdout.splitlines() if "FAIL" in x)
    assert "3 passed, 1 failed" in result.stdout


def test_rows_that_disturb_each_other_fail(monkeypatch, params):
    prefill = HFSession.prefill

    def mixed(self: HFSession, prompts: Any) -> torch.Tensor:
        logits = prefill(self, prompts)
        return logits + 0.5 * logits.roll(1, 0) if len(prompts) > 1 else logits

    monkeypatch.setattr(HFSession, "prefill", mixed)
    both = "stories + baby"
    wrong = [("batch = single", who) for who in ("stories", "baby", both)]
    assert failed(results_of(params)) == wrong


def test_ids_that_lose_bytes_fail(monkeypatch, params):
    extend = Vocabulary.extend

    def loses(self: Vocabulary, *arguments: Any) -> Any:
        kept, new, ends = extend(self, *arguments)
        return kept, [i for i in new if self.token_bytes[i] != b"e"], ends

    monkeypatch.setattr(Vocabulary, "extend", loses)
    monkeypatch.setattr("langchain_ensemble.vocab.pair_table.PairTable.append", None)
    found = [(r.what, r.who) for r in results_of(params) if not r.good]
    assert ("bytes of all members equal", "stories + baby") in found


def test_a_fusion_that_never_ends_fails(monkeypatch, params):
    tell = AverageFuser.telling

    def endless(self: AverageFuser, *arguments: Any) -> Any:
        fused, told = tell(self, *arguments)
        return replace(fused, end=torch.full_like(fused.end, -torch.inf)), told

    monkeypatch.setattr(AverageFuser, "telling", endless)
    assert failed(results_of(params)) == [("END honoured", "stories + baby")]


def test_an_exception_is_a_proof_that_failed(monkeypatch, params):
    def broken(self: HFSession, lengths: Any) -> None:
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(HFSession, "truncate", broken)
    results = list(results_of(params))
    good = [(r.what, r.who) for r in results if r.good]
    assert good == [("batch = single", "stories"), ("batch = single", "baby")]  # a prefill alone
    assert {r.detail for r in results if not r.good} == {"RuntimeError: no kernel"}
