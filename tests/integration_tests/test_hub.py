"""The real loading code against a Hub on 127.0.0.1."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from langchain_ensemble.errors import MemberError, MemoryLimitError
from langchain_ensemble.members import memory
from langchain_ensemble.members.huggingface import HFMember
from langchain_ensemble.members.inspection import inspect_member
from langchain_ensemble.members.loading import load_member
from langchain_ensemble.params import Member
from tests.hub_server import Hub, Repo, serve

LIBC = ctypes.CDLL(None, use_errno=True)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(
    pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    """A Hub with ``org/llama`` (main, v2), empty caches, and the client pointed at it."""
    with serve() as server:
        server.repos["org/llama"] = Repo({"main": pico("llama"), "v2": pico("llama", seed=1)})
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def head(member: HFMember) -> torch.Tensor:
    try:
        return member.session().prefill([member.prompt("the fox")])
    finally:
        member.close()


def test_an_id_loads_the_same_as_its_folder(hub: Hub, pico: Callable[..., Path]) -> None:
    member = load_member(Member("org/llama"))
    assert member.name == "llama"
    assert member.weights_hash == hub.repos["org/llama"].commit("main")
    torch.testing.assert_close(head(member), head(load_member(Member(str(pico("llama"))))))


def test_a_revision_is_its_own_weights(hub: Hub, pico: Callable[..., Path]) -> None:
    commit = hub.repos["org/llama"].commit("v2")
    for revision in ("v2", commit):
        member = load_member(Member("org/llama", revision=revision))
        assert member.weights_hash == commit
        want = head(load_member(Member(str(pico("llama", seed=1)))))
        torch.testing.assert_close(head(member), want)


def test_unknown_ids_and_revisions_are_named(hub: Hub) -> None:
    with pytest.raises(
        MemberError, match=r"'fox': 'org/nothing' is no folder here and not on the Hub"
    ):
        load_member(Member("org/nothing", name="fox"))
    with pytest.raises(MemberError, match=r"'org/nothing' .* pass token="):
        load_member(Member("org/nothing", token="hf_x"))
    with pytest.raises(MemberError, match=r"'org/llama' has no revision 'v9'"):
        load_member(Member("org/llama", revision="v9"))
    with pytest.raises(MemberError, match="neither a folder here nor a Hub id"):
        load_member(Member("org/llama/too/deep"))


def test_gated_repositories_say_how_to_get_in(hub: Hub, pico: Callable[..., Path]) -> None:
    hub.repos["org/gated"] = Repo({"main": pico("gpt2")}, gated=("hf_good",))
    for token in (None, "hf_bad"):  # 401, 403
        with pytest.raises(
            MemberError, match=r"member 'gated': 'org/gated' is gated; accept its terms"
        ):
            load_member(Member("org/gated", token=token))
    head(load_member(Member("org/gated", token="hf_good")))


def test_a_cut_download_leaves_nothing_half_written_and_is_resumed(
    hub: Hub, tmp_path: Path
) -> None:
    repo = hub.repos["org/llama"]
    size = (repo.folder("main") / "model.safetensors").stat().st_size
    repo.cut["model.safetensors"] = size // 2
    with pytest.raises(MemberError, match=r"member 'llama': 'org/llama' could not be .*try again"):
        load_member(Member("org/llama"))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    repo.mend()
    head(load_member(Member("org/llama")))
    (found,) = (tmp_path / "cache").rglob("model.safetensors")
    assert found.read_bytes() == (repo.folder("main") / "model.safetensors").read_bytes()


def test_a_filled_cache_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    want = head(load_member(Member("org/llama")))
    asked = len(hub.requests)
    torch.testing.assert_close(head(load_member(Member("org/llama", local_files_only=True))), want)
    assert len(hub.requests) == asked
    hub.shutdown()
    hub.server_close()
    torch.testing.assert_close(head(load_member(Member("org/llama"))), want)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.testing.assert_close(head(load_member(Member("org/llama"))), want)


def test_an_empty_cache_without_network_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = r"'org/llama' is not complete in the local cache and the Hub cannot be asked"
    with pytest.raises(MemberError, match=wanted + r" \(local_files_only=True\)"):
        load_member(Member("org/llama", local_files_only=True))
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MemberError, match=wanted + r" \(ConnectError"):
        load_member(Member("org/llama"))


def test_a_cache_with_config_but_without_weights_is_not_complete(hub: Hub) -> None:
    hub.repos["org/llama"].broken.add("model.safetensors")
    with pytest.raises(MemberError):
        load_member(Member("org/llama"))
    with pytest.raises(MemberError, match=r"not complete in the local cache|no weights to read"):
        load_member(Member("org/llama", local_files_only=True))


def test_pickled_weights_and_foreign_code_are_refused_before_weights_are_fetched(
    hub: Hub, pico: Callable[..., Path], tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(pico("gpt2"), pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.repos["org/pickled"] = Repo({"main": pickled})
    with pytest.raises(MemberError, match=r"only pytorch_model.bin\. Pickled files can run code"):
        load_member(Member("org/pickled"))
    coded = tmp_path / "coded"
    shutil.copytree(pico("gpt2"), coded)
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}
    (coded / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    hub.repos["org/coded"] = Repo({"main": coded})
    with pytest.raises(MemberError, match="set trust_remote_code=True"):
        load_member(Member("org/coded"))
    assert hub.gets("pytorch_model.bin") == hub.gets("model.safetensors") == 0


def test_inspection_reads_headers_only(hub: Hub, pico: Callable[..., Path]) -> None:
    there = inspect_member(Member("org/llama"))
    here = inspect_member(Member(str(pico("llama"))))
    assert there.commit == hub.repos["org/llama"].commit("main")
    assert there.parameters == here.parameters
    assert there.memory == here.memory
    assert there.safetensors
    assert hub.gets("model.safetensors") == 1  # the header, by range


def test_what_does_not_fit_is_not_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryLimitError, match=r"'llama': its weights need 0.2 MiB"):
        load_member(Member("org/llama"))
    assert hub.gets("model.safetensors") == 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_from_the_hub(hub: Hub, pico: Callable[..., Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(pico("llama"))
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    hub.repos["org/lora"] = Repo({"main": tmp_path / "lora"})
    with_lora = load_member(Member("org/llama", adapter="org/lora"))
    from_folder = load_member(Member("org/llama", adapter=str(tmp_path / "lora")))
    assert with_lora.weights_hash == from_folder.weights_hash
    torch.testing.assert_close(head(with_lora), head(from_folder))
    with pytest.raises(MemberError, match="'org/none' is no folder here and not on the Hub"):
        load_member(Member("org/llama", adapter="org/none"))


READ_ONLY = """
import os
import torch
torch.set_num_threads(1)
from langchain_ensemble.errors import MemberError
from langchain_ensemble.members.loading import load_member
from langchain_ensemble.params import Member
assert not os.access(os.environ["HF_HUB_CACHE"], os.W_OK)
member = load_member(Member("org/llama"))
print("filled", member.logits_width)
try:
    load_member(Member("org/llama", revision="v2"))
except MemberError as error:
    print("refused", error)
"""


def obey_file_modes() -> None:
    """Take from root the right to write where file modes forbid it (before exec, Linux)."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "prctl")


def test_a_read_only_cache_works_when_filled_and_says_so_when_not(hub: Hub, tmp_path: Path) -> None:
    load_member(Member("org/llama")).close()
    cache = tmp_path / "cache"
    paths = [p for p in (cache, *cache.rglob("*")) if not p.is_symlink()]
    modes = {p: p.stat().st_mode for p in paths}
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=obey_file_modes,
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("filled ")
    assert lines[1].startswith("refused member 'llama': 'org/llama' must be downloaded, but")
    assert "cannot be written; set HF_HOME" in lines[1]
