"""Weights are read once a process, whoever asks and however many ask at once."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from langchain_ensemble.errors import MemberError
from langchain_ensemble.members import registry
from langchain_ensemble.members.loading import load_member, load_members
from langchain_ensemble.params import Member


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own: other tests of the process may still hold weights."""
    monkeypatch.setattr(registry, "_entries", {})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that transformers really read weights from."""
    done: list[str] = []
    real = PreTrainedModel.from_pretrained.__func__

    def counted(cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        done.append(str(path))
        return real(cls, path, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    return done


def test_members_that_differ_in_their_view_share_weights(
    pico: Callable[..., Path], reads: list[str]
) -> None:
    folder = str(pico("llama"))
    views = [
        Member(folder, name="a"),
        Member(folder, name="b", system="Be brief.", chat_template="{{ messages }}"),
        Member(folder + "/", name="c", token="hf_x", dtype="float32", device="cpu"),
    ]
    members = load_members(views)
    assert len(reads) == 1
    assert members[0].module is members[1].module is members[2].module
    assert members[1].chat_template == "{{ messages }}"
    assert members[0].chat_template is None
    assert members[1].system == "Be brief."
    assert list(registry.held().values()) == [3]
    for member in members:
        member.close()
    assert registry.held() == {}


def test_what_changes_bytes_is_loaded_apart(pico: Callable[..., Path], reads: list[str]) -> None:
    folder = str(pico("llama"))
    members = [
        load_member(Member(folder)),
        load_member(Member(folder, dtype="bfloat16")),
        load_member(Member(folder, attn_implementation="eager")),
        load_member(Member(str(pico("gpt2")))),
    ]
    assert len(reads) == 4
    assert len({id(m.module) for m in members}) == 4
    for member in members:
        member.close()


def test_the_last_lease_frees_and_the_next_load_reads_again(
    pico: Callable[..., Path], reads: list[str]
) -> None:
    first, second = (load_member(Member(str(pico("llama")))) for _ in range(2))
    module = weakref.ref(first.module)
    first.close()
    first.close()  # giving back twice does nothing
    with pytest.raises(MemberError, match="released; load the member again"):
        first.session()
    assert second.session() is not None
    second.close()
    gc.collect()
    assert module() is None
    load_member(Member(str(pico("llama")))).close()
    assert len(reads) == 2


def test_a_folder_that_changed_is_read_again(
    pico: Callable[..., Path], tmp_path: Path, reads: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pico("llama"), folder)
    old = load_member(Member(str(folder)))
    shutil.copy(pico("llama", seed=1) / "model.safetensors", folder)
    new = load_member(Member(str(folder)))
    assert len(reads) == 2
    assert old.weights_hash != new.weights_hash
    old.close()
    new.close()


def test_many_threads_load_once(pico: Callable[..., Path], reads: list[str]) -> None:
    members = load_members([Member(str(pico("llama")), name=f"m{i}") for i in range(6)])
    assert len(reads) == 1
    for member in members:
        member.close()


def test_models_loaded_side_by_side_are_whole(pico: Callable[..., Path]) -> None:
    kinds = ["llama", "qwen2", "gpt2", "neox"]
    folders = [Member(str(pico(kind))) for kind in kinds]
    together = load_members(folders)
    for member, settings in zip(together, folders, strict=True):
        prompt = member.prompt("the fox")
        got = member.session().prefill([prompt])
        member.close()
        alone = load_member(settings)
        torch.testing.assert_close(got, alone.session().prefill([prompt]))
        alone.close()


def test_one_failure_gives_the_others_back(pico: Callable[..., Path]) -> None:
    with pytest.raises(MemberError, match="'absent'"):
        load_members([Member(str(pico("llama"))), Member("/nowhere/absent", name="absent")])
    assert registry.held() == {}


def test_a_load_that_fails_can_be_tried_again() -> None:
    calls = []

    def load() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("first try")
        return "value"

    with pytest.raises(OSError, match="first try"):
        registry.acquire("key", load)
    assert registry.acquire("key", load).value == "value"
    registry._entries.clear()


def test_waiters_of_a_failed_load_try_themselves() -> None:
    started, results = threading.Event(), []

    def load() -> str:
        started.set()
        time.sleep(0.05)
        if not results:
            results.append("failed")
            raise OSError("cut")
        return "value"

    def user() -> None:
        try:
            lease = registry.acquire("key", load)
        except OSError:
            return
        results.append(lease.value)
        lease.release()

    threads = [threading.Thread(target=user) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["failed", "value", "value"]
    assert registry.held() == {}


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_with_an_empty_registry(pico: Callable[..., Path]) -> None:
    member = load_member(Member(str(pico("llama"))))
    child = os.fork()
    if child == 0:
        status = 0
        try:
            assert registry.held() == {}
            member.close()  # the parent's count is not the child's
            assert isinstance(LlamaForCausalLM, type)
        except BaseException:
            status = 1
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert list(registry.held().values()) == [1]
    member.close()
