"""The disk cache: builds once, survives kills, damage and two processes, and never lies."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from langchain_ensemble import store as module
from langchain_ensemble.errors import CacheError, ConfigError
from langchain_ensemble.store import ENVIRONMENT, Store

ROOT = Path(__file__).resolve().parents[2]


class Builder:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, Tensor]:
        self.count += 1
        base = torch.arange(24.0).reshape(4, 6)
        return {"all": base, "turned": base.T, "part": base[1:3], "half": base.bfloat16()}


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


_SERVER = """
import os, resource, sys
import torch
from pathlib import Path
from langchain_ensemble.store import Store, _read

def write(folder, log, numbers):
    store = Store(folder)
    for n in numbers:
        def build():
            with open(log, "a") as file:
                file.write(f"{n}\\n")
            return {"x": torch.full((200_000,), float(n))}
        assert float(store.remember({"n": n}, build)["x"][-1]) == n

def read(path):
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    before = peak()
    assert float(_read(Path(path))["big"][3, :5].sum()) == 0.0
    assert peak() - before < 64 * 1024, peak() - before

torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    verb, _, rest = line.strip().partition(" ")
    if verb == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(int(rest), 0)[1]), flush=True)
    else:
        child = os.fork()
        if child == 0:
            try:
                eval(rest)
                os._exit(0)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        print(child, flush=True)
"""


class Others:
    """Other processes: forked from one that has torch loaded, so that each starts at once."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"

    def start(self, call: str) -> int:
        """Run a call of the server's script in a new process; its id."""
        return int(self._ask(f"start {call}"))

    def wait(self, process: int) -> int:
        """Its exit code, negative for a signal."""
        return int(self._ask(f"wait {process}"))

    def close(self) -> None:
        self._server.communicate(timeout=30)

    def _ask(self, line: str) -> str:
        assert self._server.stdin is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    server = Others()
    yield server
    server.close()


KEY = {"kind": "test", "embeddings": "abc", "settings": [1, 2.5, None]}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == sorted(second)
    for name, tensor in second.items():
        assert torch.equal(first[name], tensor)
        assert first[name].dtype == tensor.dtype


def test_builds_once_and_gives_the_same(store: Store, build: Builder) -> None:
    first = store.remember(KEY, build)
    again = store.remember(dict(reversed(KEY.items())), build)
    other = Store(store.folder).remember(KEY, build)
    assert build.count == 1
    for found in (first, again, other):
        _same(found, Builder()())
    store.remember({**KEY, "settings": [1, 2.5, 0]}, build)
    assert build.count == 2


def test_what_is_read_is_memory_mapped(store: Store, others: Others) -> None:
    """Reading 256 MiB must not make it resident."""
    store.remember({"big": 1}, lambda: {"big": torch.zeros(64, 1 << 20)})
    child = others.start(f"read({str(store.list()[0].path)!r})")
    assert others.wait(child) == 0


def test_nothing_is_made_before_something_is_stored(store: Store) -> None:
    assert list(store.list()) == []
    assert store.clear() == 0
    assert not store.folder.exists()


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "mine"))
    assert Store().folder == tmp_path / "mine"
    assert Store(tmp_path / "given").folder == tmp_path / "given"
    monkeypatch.delenv(ENVIRONMENT)
    assert Store().folder.name == "langchain-ensemble"


@pytest.mark.parametrize("key", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}])
def test_a_key_that_is_not_json_is_refused(store: Store, build: Builder, key: dict) -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        store.remember(key, build)
    assert build.count == 0


def test_list_verify_clear(store: Store, build: Builder) -> None:
    store.remember(KEY, build)
    store.remember({"kind": "second"}, build)
    entries = store.list()
    assert sorted(entry.key["kind"] for entry in entries) == ["second", "test"]
    assert all(entry.size == entry.path.stat().st_size for entry in entries)
    assert [problem for _, problem in store.verify()] == [None, None]
    _cut(entries[0].path)
    assert [p for entry, p in store.verify() if entry.path == entries[0].path] == [
        "its checksum differs: cut short, or changed"
    ]
    size = sum(entry.path.stat().st_size for entry in entries)
    assert store.clear() == size
    assert list(store.list()) == []
    store.remember(KEY, build)
    assert build.count == 3


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_bytes(os.urandom(500))


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _foreign])
def test_a_damaged_entry_is_built_again(
    store: Store, build: Builder, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store.remember(KEY, build)
    path = store.list()[0].path
    damage(path)
    with caplog.at_level(logging.WARNING):
        found = Store(store.folder).remember(KEY, build)
    assert build.count == 2
    _same(found, Builder()())
    assert str(path) in caplog.text
    assert "built again" in caplog.text
    assert [problem for _, problem in store.verify()] == [None]


def _planted(store: Store, path: Path, metadata: dict[str, str]) -> None:
    """A whole, well-named file that holds something else."""
    save_file({"all": torch.zeros(3)}, path, metadata=metadata)
    name = path.name.partition("-")[0]
    path.rename(path.with_name(f"{name}-{module._checksum(path)}.safetensors"))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"format": "1", "key": "{}"}, "another key"),
        ({"format": "0", "key": "{}"}, "format '0', this version reads 1"),
        ({}, "format None"),
    ],
)
def test_a_foreign_file_under_our_name_is_built_again(
    store: Store,
    build: Builder,
    metadata: dict[str, str],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.remember(KEY, build)
    path = store.list()[0].path
    path.unlink()
    _planted(store, path, metadata)
    with caplog.at_level(logging.WARNING):
        _same(Store(store.folder).remember(KEY, build), Builder()())
    assert build.count == 2
    assert reason in caplog.text


def test_clear_leaves_what_is_being_built(store: Store) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow_write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        started.set()
        assert go_on.wait(10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_file", slow_write)
        writer = threading.Thread(target=store.remember, args=(KEY, Builder()))
        writer.start()
        assert started.wait(10)
        assert Store(store.folder).clear() == 0
        go_on.set()
        writer.join()
    assert [problem for _, problem in store.verify()] == [None]


def test_other_files_in_the_folder_are_left_alone(store: Store, build: Builder) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "notes.txt").write_text("mine")
    store.remember(KEY, build)
    store.clear()
    assert (store.folder / "notes.txt").read_text() == "mine"


def test_removed_entry_is_built_again(store: Store, build: Builder) -> None:
    held = store.remember(KEY, build)["all"]
    Store(store.folder).clear()
    assert float(held.sum()) == sum(range(24))  # what a reader holds stays
    store.remember(KEY, build)
    assert build.count == 2


def test_a_folder_that_cannot_be_written_is_said_and_not_fatal(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        _same(dict(sorted(store.remember(KEY, build).items())), Builder()())
    assert build.count == 1
    assert str(store.folder) in caplog.text
    assert ENVIRONMENT in caplog.text


def test_a_full_disk_is_said_and_leaves_nothing(
    store: Store,
    build: Builder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"part of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with caplog.at_level(logging.WARNING):
        store.remember(KEY, build)
    assert build.count == 1
    assert "No space left" in caplog.text
    assert [p.name for p in store.folder.iterdir()] == ["locks"]


def test_a_builds_own_error_is_not_swallowed(store: Store, build: Builder) -> None:
    def broken() -> dict[str, Tensor]:
        raise OSError("the weights are gone")

    with pytest.raises(OSError, match="weights are gone"):
        store.remember(KEY, broken)
    store.remember(KEY, build)
    assert build.count == 1


def test_what_cannot_be_read_or_removed_is_an_error(
    tmp_path: Path, store: Store, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match=f"cannot be read.*{ENVIRONMENT}"):
        Store(tmp_path / "file").list()
    store.remember(KEY, build)

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(CacheError, match="cannot be removed: Permission denied"):
        store.clear()


def test_threads_build_once(store: Store) -> None:
    count: list[int] = []

    def slow() -> dict[str, Tensor]:
        count.append(1)
        time.sleep(0.1)
        return {"x": torch.ones(3)}

    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(float(store.remember(KEY, slow)["x"].sum())))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3.0] * 6
    assert len(count) == 1


def test_processes_that_build_at_once_build_once(tmp_path: Path, others: Others) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    call = f"write({str(folder)!r}, {str(log)!r}, range(20))"
    writers = [others.start(call) for _ in range(3)]
    assert [others.wait(writer) for writer in writers] == [0, 0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    assert [problem for _, problem in Store(folder).verify()] == [None] * 20


def test_a_kill_at_any_moment_leaves_no_bad_entry(
    tmp_path: Path, others: Others, acceptance_scale: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Writers are killed at random moments; what they leave is whole, and the next one goes on."""
    folder, log = tmp_path / "cache", tmp_path / "log"
    moments = random.Random(0)
    killed = known = 0
    for turn in range(25 * acceptance_scale):
        numbers = f"range({1000 * turn}, {1000 * turn + 1000})"
        writer = others.start(f"write({str(folder)!r}, {str(log)!r}, {numbers})")
        deadline = time.monotonic() + 30
        while not log.exists() or log.read_text().count("\n") <= known:
            assert time.monotonic() < deadline, "the writer never began"
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        os.kill(writer, signal.SIGKILL)
        assert others.wait(writer) == -signal.SIGKILL
        killed += 1
        store = Store(folder)
        assert all(problem is None for _, problem in store.verify())
        started = [int(line) for line in log.read_text().split()]
        known = len(started)
        with caplog.at_level(logging.WARNING):  # the entry that was being written
            last = store.remember(
                {"n": started[-1]}, lambda n=started[-1]: {"x": torch.full((5,), float(n))}
            )
        assert float(last["x"][0]) == started[-1]
        assert caplog.text == ""
    assert len(Store(folder).list()) >= killed
    leftovers = [p for p in folder.iterdir() if p.suffix == ".tmp"]
    assert len(leftovers) <= killed
    Store(folder).clear()
    assert [p.name for p in folder.iterdir()] == ["locks"]
