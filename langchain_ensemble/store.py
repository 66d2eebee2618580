"""The disk cache: tensors that are expensive to build, stored once under what they were built from.

An entry is one ``safetensors`` file, memory-mapped when it is read. Its name holds two hashes: of
the *key* (what it was built from: content hashes, settings, format version) and of the file's own
bytes. So no name ever stands for two contents, nothing is replaced in place, and a reader that has
a file open keeps what it opened.

How it stays right: a file is written in a folder of its own, flushed to the disk and renamed; a
kill at any moment leaves at most that folder, which the next builder of that key removes. A
lock per key makes two processes that build at once build once. Before an entry is first used by a
process, its header, size, checksum, key and format version are checked; one that fails is removed,
with a warning, and built anew. A folder that cannot be written is no error: what is there is used,
and the rest is built in memory, with a warning that names the folder.

Knows files; must not know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from langchain_ensemble.errors import CacheError, ConfigError

FORMAT = 1
"""Version of the files; entries of another version are not found, and ``clear`` removes them."""

ENVIRONMENT = "LANGCHAIN_ENSEMBLE_CACHE"
"""Names the folder, if set; otherwise the platform's cache folder is used."""

_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One stored file.

    Attributes:
        path: Where it is.
        key: What it was built from (empty where the file cannot be read).
        size: Bytes.
    """

    path: Path
    key: Mapping[str, Any]
    size: int


class Store:
    """A folder of entries, safe to share between threads and processes."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Choose the folder; nothing is created before something is stored.

        Args:
            folder: Where entries live; None: ``LANGCHAIN_ENSEMBLE_CACHE``, else the platform's
                cache folder.
        """
        chosen = (
            folder or os.environ.get(ENVIRONMENT) or user_cache_dir("langchain-ensemble", False)
        )
        self.folder = Path(chosen).expanduser()
        self._good: dict[Path, tuple[int, int, int]] = {}  # checked files, as they were then

    def remember(
        self, key: Mapping[str, Any], build: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Give what ``build`` makes, from the disk where it is there, building it at most once.

        Args:
            key: What the tensors depend on, JSON-able; the same key means the same tensors.
            build: Makes the tensors.

        Returns:
            The tensors on the CPU, memory-mapped where they come from the disk.

        Raises:
            ConfigError: The key is not JSON.
        """
        text = _canonical(key)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        found = self._load(name, text)
        if found is not None:
            return found
        made: dict[str, Tensor] | None = None
        try:
            with self._locked(name):
                found = self._load(name, text)  # another process may have built it meanwhile
                if found is not None:
                    return found
                made = _plain(build())
                path = self._write(name, text, made)
            self._good[path] = _stamp(path)
            return _read(path)
        except _Unwritable as error:
            logger.warning(
                "cache folder %s cannot be written (%s): the result stays in memory and is built "
                "again next time; set %s to a folder that can be written",
                self.folder,
                error,
                ENVIRONMENT,
            )
            return made if made is not None else _plain(build())

    def list(self) -> Sequence[Entry]:
        """Every entry, by name.

        Raises:
            CacheError: The folder cannot be read.
        """
        entries = []
        for path in self._files():
            try:
                key = json.loads(_metadata(path).get("key", "{}"))
            except (OSError, ValueError, SafetensorError):
                key = {}
            entries.append(Entry(path, key, path.stat().st_size))
        return entries

    def verify(self) -> Sequence[tuple[Entry, str | None]]:
        """Check every entry from end to end; None beside a good one, else what is wrong."""
        return [(entry, _wrong(entry.path, None)) for entry in self.list()]

    def clear(self) -> int:
        """Remove every entry and every left-over; lock files stay, and what is being built.

        Returns:
            Bytes freed.

        Raises:
            CacheError: Something cannot be removed.
        """
        freed = 0
        for path in [*self._files(), *self._leftovers("")]:
            try:
                freed += self._remove(path)
            except FileNotFoundError:
                continue  # by another process
            except OSError as error:
                raise CacheError(f"{path} cannot be removed: {error.strerror}") from error
        self._good.clear()
        return freed

    def _remove(self, path: Path) -> int:
        """Remove an entry, or a left-over that nobody is working in; the bytes freed."""
        if path.suffix == _SUFFIX:
            size = path.stat().st_size
            path.unlink()
            return size
        try:
            with FileLock(self.folder / "locks" / f"{path.name.partition('-')[0]}.lock", timeout=0):
                size = sum(file.stat().st_size for file in path.iterdir())
                shutil.rmtree(path)
                return size
        except Timeout:
            return 0

    def _files(self) -> Sequence[Path]:
        if not self.folder.exists():
            return []
        try:
            return sorted(p for p in self.folder.iterdir() if p.suffix == _SUFFIX)
        except OSError as error:
            raise CacheError(
                f"cache folder {self.folder} cannot be read: {error.strerror}. Set {ENVIRONMENT} "
                "to a folder of yours."
            ) from error

    def _leftovers(self, name: str) -> Sequence[Path]:
        try:
            return sorted(
                p
                for p in self.folder.iterdir()
                if p.name.startswith(name) and p.suffix == _TEMPORARY
            )
        except OSError:
            return []  # no folder, so no left-overs

    def _load(self, name: str, text: str) -> dict[str, Tensor] | None:
        """The entry of a key, checked once a process; a bad one is removed."""
        try:
            paths = [p for p in self._files() if p.name.startswith(f"{name}-")]
        except CacheError as error:
            logger.warning("%s", error)
            return None
        for path in paths:
            try:
                if self._good.get(path) != _stamp(path):
                    problem = _wrong(path, text)
                    if problem is not None:
                        self._discard(path, problem)
                        continue
                    self._good[path] = _stamp(path)
                return _read(path)
            except FileNotFoundError:
                continue  # removed by another process
        return None

    def _discard(self, path: Path, problem: str) -> None:
        logger.warning("cache entry %s is bad (%s); it is built again", path, problem)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of one key; the system frees it when a process dies."""
        try:
            locks = self.folder / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / f"{name}.lock")
            lock.acquire()
        except OSError as error:
            raise _Unwritable(error.strerror or str(error)) from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, name: str, text: str, tensors: dict[str, Tensor]) -> Path:
        """Write beside, flush, rename. The caller holds the key's lock."""
        workplace = self.folder / f"{name}-{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY}"
        try:
            for old in self._leftovers(f"{name}-"):
                shutil.rmtree(old)  # of a builder that was killed: we hold its lock
            workplace.mkdir()  # a folder, since writing a file may itself leave temporary ones
            file = workplace / "entry"
            save_file(tensors, file, metadata={"format": str(FORMAT), "key": text})
            _flush(file)
            path = self.folder / f"{name}-{_checksum(file)}{_SUFFIX}"
            os.replace(file, path)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            raise _Unwritable(str(error)) from error
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
        return path


class _Unwritable(Exception):
    """The folder cannot be written (read-only, full, not a folder)."""


def _canonical(key: Mapping[str, Any]) -> str:
    try:
        return json.dumps(
            {**key, "store_format": FORMAT}, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cache key {key!r} is not JSON: {error}") from error


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that own their storage, as the file format needs."""
    plain: dict[str, Tensor] = {}
    taken: list[int] = []
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        storage = one.untyped_storage()
        if storage.nbytes() != one.nbytes or storage.data_ptr() in taken:
            one = one.clone()
        taken.append(one.untyped_storage().data_ptr())
        plain[name] = one
    return plain


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _wrong(path: Path, text: str | None) -> str | None:
    """Say what is wrong with a file; None where it is what its name and key promise."""
    named = path.stem.rpartition("-")[2]
    try:
        if _checksum(path) != named:
            return "its checksum differs: cut short, or changed"
        metadata = _metadata(path)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:
        return str(error)
    if metadata.get("format") != str(FORMAT):
        return f"format {metadata.get('format')!r}, this version reads {FORMAT}"
    key = metadata.get("key", "")
    if not path.name.startswith(hashlib.sha256(key.encode()).hexdigest()[:32]):
        return "its name belongs to another key"
    if text is not None and key != text:
        return "it was built from something else"
    return None


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _flush(path: Path) -> None:
    """Make a file's content, or a folder's renames, durable (folders: not on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
