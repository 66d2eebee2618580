"""A small Hub on 127.0.0.1: what the client of ``huggingface_hub`` asks of it, and its refusals.

Serves ``/api/models/<id>[/revision/<r>]``, ``/api/models/<id>/tree/<r>`` and
``/<id>/resolve/<r>/<file>`` (HEAD, GET, ranges) with the Hub's headers. Repositories are folders on
disk; large files carry the LFS headers, as weights do.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?$")
TREE = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)(?:/.*)?$")
FILE = re.compile(r"^/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)$")


@dataclass
class Repo:
    """One repository.

    ``gated``: tokens that were let in; None: open to all. ``cut``: file -> bytes after which every
    GET of it breaks off (once; later ranges of it answer 500 until ``mend``).
    """

    revisions: dict[str, Path]
    gated: tuple[str, ...] | None = None
    cut: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str | None:
        """Commit of a branch, tag or commit."""
        for name, folder in self.revisions.items():
            sha = hashlib.sha1(f"{name}:{folder}".encode()).hexdigest()
            if revision in (name, sha):
                return sha
        return None

    def folder(self, revision: str) -> Path:
        """Files of a revision."""
        wanted = self.commit(revision)
        return next(f for n, f in self.revisions.items() if self.commit(n) == wanted)

    def mend(self) -> None:
        """Let cut files through."""
        self.cut.clear()
        self.broken.clear()


class Hub(ThreadingHTTPServer):
    """The server; ``requests`` holds (method, path) of all that was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, name: str) -> int:
        """How often the bytes of a file were asked for."""
        return sum(m == "GET" and p.endswith("/" + name) for m, p in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        for pattern, serve in ((TREE, self._tree), (INFO, self._info), (FILE, self._file)):
            if match := pattern.match(path):
                parts = match.groupdict()
                repo = self.server.repos.get(parts["id"])
                revision = parts.get("rev") or "main"
                if repo is None:
                    self._refuse(401 if self._token() is None else 404, "RepoNotFound")
                elif repo.commit(revision) is None:
                    self._refuse(404, "RevisionNotFound")
                else:
                    serve(repo, parts["id"], revision, parts.get("file") or "")
                return
        self._refuse(404, "")

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _json(self, data: Any) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _info(self, repo: Repo, name: str, revision: str, _: str) -> None:
        folder = repo.folder(revision)
        files = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
        gated = False if repo.gated is None else "manual"
        self._json(
            {"id": name, "modelId": name, "sha": repo.commit(revision), "siblings": files,
             "private": False, "gated": gated, "disabled": False, "tags": [], "downloads": 0}
        )  # fmt: skip

    def _tree(self, repo: Repo, name: str, revision: str, _: str) -> None:
        entries = []
        for path in sorted(repo.folder(revision).iterdir()):
            size = path.stat().st_size
            entry: dict[str, Any] = {
                "type": "file", "path": path.name, "size": size, "oid": _etag(path)[:40]
            }  # fmt: skip
            if _large(path):
                entry["lfs"] = {"oid": _etag(path), "size": size, "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _file(self, repo: Repo, name: str, revision: str, file: str) -> None:
        if repo.gated is not None and self._token() not in repo.gated:
            self._refuse(401 if self._token() is None else 403, "GatedRepo")
            return
        path = repo.folder(revision) / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        if self.command == "GET" and file in repo.broken:
            self._refuse(500, "")
            return
        self._bytes(repo, path, str(repo.commit(revision)))

    def _bytes(self, repo: Repo, path: Path, commit: str) -> None:
        body = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        if _large(path):
            headers |= {"X-Linked-Etag": f'"{_etag(path)}"', "X-Linked-Size": str(len(body))}
        status = 200
        if match := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or ""):
            start, end = int(match[1]), int(match[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        headers["Content-Length"] = str(len(body))
        if self.command == "GET" and path.name in repo.cut:
            repo.broken.add(path.name)
            body = body[: repo.cut.pop(path.name)]
            self.close_connection = True
        self._send(status, body, headers)


def _large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin")


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub for as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
