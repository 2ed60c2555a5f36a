"""A small Hub on 127.0.0.1: directories served as repositories, with a log of what was sent and switches for faults."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from typing_extensions import Self

_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_API = re.compile(r"/api/models/([^/]+(?:/[^/]+)?)")
_API_AT = re.compile(r"/api/models/([^/]+(?:/[^/]+)?)/(revision|tree)/([^/]+)(?:/(.*))?")
_RESOLVE = re.compile(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/([0-9a-f]{40})/(.+)")


@dataclass
class Faults:
    """What goes wrong, while it is set."""

    drop_after: int | None = None
    """Close the connection after so many bytes of a file's body..."""
    drops: int = 10**9
    """...so many times."""
    failures: int = 0
    """Answer this many file requests with `failure_status` first."""
    failure_status: int = 500
    no_ranges: bool = False
    """Answer range requests with the whole file (200)."""
    extra_bytes: int = 0
    """Send this many bytes more than asked for."""
    shifted_bytes: int = 0
    """Send ranges that begin so many bytes late (and say so)."""
    compresses: bool = False
    """Compress files' bodies where the client accepts it..."""
    whatever_is_accepted: bool = False
    """...and where it does not."""
    delay_seconds: float = 0.0
    """Wait before answering file requests."""
    not_a_hub: bool = False
    """Answer the API with a web page."""
    api_status: int = 200
    """Answer the API with this status."""


@dataclass(frozen=True)
class Served:
    """One answered request."""

    method: str
    path: str
    file: str | None
    status: int
    span: str | None
    sent_bytes: int
    authorization: str | None


@dataclass
class Commit:
    """One revision's files."""

    sha: str
    files: dict[str, Path]


@dataclass
class HubServer:
    """Serves while it is entered as a context manager."""

    token: str | None = None
    """The token that every repository asks for, if any."""
    gated: bool = False
    """Whether a missing token is answered as a gated repository does (else as a missing one)."""
    cdn: bool = False
    """Whether large files are redirected to another host, as the Hub does."""
    faults: Faults = field(default_factory=Faults)
    log: list[Served] = field(default_factory=list)
    _repos: dict[str, dict[str, Commit]] = field(default_factory=dict)

    def add(self, repo: str, directory: Path, revision: str = "main") -> str:
        """Publishes a directory as one revision; the commit that it got."""
        files = {
            str(path.relative_to(directory).as_posix()): path for path in sorted(directory.rglob("*")) if path.is_file()
        }
        digest = hashlib.sha1(repo.encode())
        for name, path in files.items():
            digest.update(name.encode() + b"\0" + path.read_bytes())
        commit = Commit(digest.hexdigest(), files)
        self._repos.setdefault(repo, {}).update({revision: commit, commit.sha: commit})
        return commit.sha

    def commit(self, repo: str, revision: str) -> Commit | None:
        return self._repos.get(repo, {}).get(revision)

    def by_sha(self, sha: str) -> Commit | None:
        return next((commits[sha] for commits in self._repos.values() if sha in commits), None)

    def sent(self, file: str | None = None) -> int:
        """Bytes of files' bodies that were sent, of one file or of all."""
        return sum(served.sent_bytes for served in self.log if served.file and file in (None, served.file))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """An environment for a process that knows no other Hub, and no token but what `more` gives."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def use_hub(server: HubServer | str, cache: Path, *, token: str | None = None, offline: bool = False) -> Iterator[None]:
    """Points this process's huggingface_hub at a server (or an address) and an empty home, and back again.

    huggingface_hub reads its environment once, when it is imported; this sets what it made of it.
    """
    from huggingface_hub import constants, file_download

    url = server if isinstance(server, str) else server.url
    constant = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "AGENT_HARNESSES_PATH": str(cache / "agent_harnesses.json"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    # Before 1.0, some constants had been copied into the module that downloads.
    before = [
        (module, name, getattr(module, name))
        for module in (constants, file_download)
        for name in constant
        if hasattr(module, name)
    ]
    tokens = {name: os.environ.pop(name, None) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")}
    for module, name, _ in before:
        setattr(module, name, constant[name])
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({name: value for name, value in tokens.items() if value is not None})


class _Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does; one connection a request, so that nothing outlives a test."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path
        if match := _CDN.fullmatch(path):
            commit = self.hub.by_sha(match[1])
            return self._file(commit, unquote(match[2])) if commit else self._refuse(404, "RepoNotFound")
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            if self.headers.get("Authorization"):
                return self._refuse(401, None, "Invalid credentials in Authorization header")
            return self._refuse(401, "GatedRepo") if self.hub.gated else self._refuse(401, "RepoNotFound")
        if path.startswith("/api/"):
            return self._api(path, parse_qs(parts.query))
        match = _RESOLVE.fullmatch(path)
        if not match or match[1] not in self.hub._repos:
            return self._refuse(404, "RepoNotFound")
        commit = self.hub.commit(match[1], unquote(match[2]))
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        name = unquote(match[3])
        if name not in commit.files:
            return self._refuse(404, "EntryNotFound")
        if self.hub.cdn and name.endswith(_LFS_SUFFIXES):
            return self._redirect(commit, name)
        return self._file(commit, name)

    def _api(self, path: str, query: dict[str, list[str]]) -> None:
        faults = self.hub.faults
        if faults.not_a_hub:
            return self._send(200, b"<html>Welcome to the hotel</html>", {"Content-Type": "text/html"})
        if faults.api_status != 200:
            return self._refuse(faults.api_status, None)
        match = _API_AT.fullmatch(path) or _API.fullmatch(path)
        repo, kind, revision, inside = (*match.groups(), None, None, None)[:4] if match else (None,) * 4
        if repo not in self.hub._repos:
            return self._refuse(404, "RepoNotFound")
        commit = self.hub.commit(repo, unquote(revision or "main"))
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if kind == "tree":
            rows: Any = self._tree(
                commit, unquote(inside or ""), query.get("recursive", ["false"])[0].lower() == "true"
            )
        else:
            described = [_described(name, file, "blobs" in query) for name, file in commit.files.items()]
            rows = {"_id": "0", "id": repo, "modelId": repo, "sha": commit.sha, "private": False, "siblings": described}
        return self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

    def _tree(self, commit: Commit, inside: str, recursive: bool) -> list[dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for name, file in commit.files.items():
            if inside and not name.startswith(f"{inside}/"):
                continue
            first, deeper, _ = name[len(inside) :].lstrip("/").partition("/")
            if deeper and not recursive:
                folder = f"{inside}/{first}".lstrip("/")
                rows[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            else:
                described = _described(name, file, True)
                rows[name] = {"type": "file", "path": name, "oid": described["blobId"], "size": described["size"]}
        return list(rows.values())

    def _redirect(self, commit: Commit, name: str) -> None:
        etag = f'"{_etag(name, commit.files[name])}"'
        self._send(
            302,
            b"",
            {
                "Location": f"http://localhost:{self.hub.port}/cdn/{commit.sha}/{quote(name)}?signature=good",
                "X-Repo-Commit": commit.sha,
                "X-Linked-Size": str(commit.files[name].stat().st_size),
                "X-Linked-ETag": etag,
                "ETag": etag,
            },
            file=name,
        )

    def _file(self, commit: Commit, name: str) -> None:
        faults = self.hub.faults
        time.sleep(faults.delay_seconds)
        if self.command == "GET" and faults.failures > 0:
            faults.failures -= 1
            return self._refuse(faults.failure_status, None, file=name)
        whole = commit.files[name].read_bytes()
        headers = {
            "X-Repo-Commit": commit.sha,
            "ETag": f'"{_etag(name, commit.files[name])}"',
            "Accept-Ranges": "none" if faults.no_ranges else "bytes",
            "Content-Type": "application/octet-stream",
        }
        accepts = "gzip" in self.headers.get("Accept-Encoding", "") or faults.whatever_is_accepted
        if faults.compresses and accepts:
            whole = gzip.compress(whole)
            headers["Content-Encoding"] = "gzip"
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span or faults.no_ranges:
            return self._send(200, whole, headers, file=name)
        start = int(span[1]) + faults.shifted_bytes
        stop = min(int(span[2]) + 1 + faults.extra_bytes if span[2] else len(whole), len(whole))
        if start >= len(whole):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(whole)}"}, file=name)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(whole)}"
        return self._send(206, whole[start:stop], headers, file=name)

    def _refuse(self, status: int, code: str | None, message: str = "", file: str | None = None) -> None:
        headers = {"X-Error-Message": message or code or "internal", **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers, file)

    def _send(self, status: int, body: bytes, headers: dict[str, str], file: str | None = None) -> None:
        self.close_connection = True
        faults = self.hub.faults
        sent = b"" if self.command == "HEAD" else body
        if file and sent and faults.drop_after is not None and faults.drops > 0 and len(sent) > faults.drop_after:
            faults.drops -= 1
            sent = sent[: faults.drop_after]
        span, authorization = self.headers.get("Range"), self.headers.get("Authorization")
        # Newer versions of huggingface_hub also ask for things that are no repository's.
        if file or self.path.startswith("/api/models/"):
            self.hub.log.append(Served(self.command, self.path, file, status, span, len(sent), authorization))
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            self.wfile.flush()
        except ConnectionError:
            pass  # the client has seen enough


def _etag(name: str, file: Path) -> str:
    content = file.read_bytes()
    if name.endswith(_LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _described(name: str, file: Path, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    size = file.stat().st_size
    lfs = (
        {"lfs": {"sha256": _etag(name, file), "size": size, "pointerSize": 134}} if name.endswith(_LFS_SUFFIXES) else {}
    )
    return {"rfilename": name, "size": size, "blobId": _etag("", file), **lfs}
