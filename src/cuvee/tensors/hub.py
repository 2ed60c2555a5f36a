"""Checkpoints on the Hub: read in ranges before anything is downloaded, fetched file by file into the Hub's cache.

huggingface_hub brings the session, the token, the endpoint and the cache; only what it has had since 0.30 is used. A
repository is held at one commit from the first question on. Nothing that it holds is executed, and no message repeats
what a server said or the token that it was sent. What the files mean is not known here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from cuvee.tensors.hub_refusals import PassingError, Refusals, host, patiently
from cuvee.tensors.location import Directory, Location
from cuvee.tensors.reference import looks_like_hub_id

_REVISION = re.compile(r"[\w.\-/]{1,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES = 1 << 16
# Without range requests, everything before the wanted bytes is read and thrown away: beyond this, a download is better.
_MAX_SKIPPED_BYTES = 64 << 20


class _Told:
    """What a watcher was told of one file's bytes: never more than there are, and all of them in the end."""

    def __init__(self, advance: Callable[[int], None] | None, size: int) -> None:
        self._advance = advance
        self._left = size

    def some(self, count: float) -> None:
        step = min(max(int(count), 0), self._left)
        self._left -= step
        if self._advance and step:
            self._advance(step)

    def rest(self) -> None:
        self.some(self._left)


def _watched_by(download: Callable[..., Any], told: _Told) -> dict[str, Any]:
    """Arguments that make a download report its bytes to `told` instead of drawing a bar, where it can."""
    if "tqdm_class" not in inspect.signature(download).parameters:
        return {}
    from tqdm import tqdm

    class Watch(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # huggingface_hub's own bars know this argument
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            told.some(n or 0)
            return None

    return {"tqdm_class": Watch}


class Hub(Location):
    """A repository on the Hub at one commit, or its snapshot in the local cache when huggingface_hub is offline."""

    def __init__(self, repo_id: str, revision: str | None, cache_dir: Path | None = None) -> None:
        from huggingface_hub import constants

        self._repo = repo_id
        self._revision = revision or None
        self._called = f"{repo_id}@{revision}" if revision else repo_id
        self._cache = Path(cache_dir or constants.HF_HUB_CACHE)
        self._refusals = Refusals(repo_id, self._revision, self._called, self._cache)
        self._folder = self._cache / f"models--{repo_id.replace('/', '--')}"
        if not looks_like_hub_id(repo_id):
            raise self._refusals.refusal(f"{repo_id!r} is not a Hub id", expected="name or organisation/name")
        if constants.HF_HUB_OFFLINE:
            commit = self._cached_commit()
            self._sizes: Mapping[str, int] = Directory(self._folder / "snapshots" / commit).sizes()
        else:
            commit, self._sizes = patiently(self._ask)
        self._commit = commit
        self.identity = f"hf://{repo_id}@{commit}"

    def sizes(self) -> dict[str, int]:
        """Sizes of the repository's files; offline, of those that the cache holds."""
        return dict(self._sizes)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file: from the cache if it is there, else by range requests."""
        stop = min(stop, self._size(name))
        if start >= stop:
            return b""
        if cached := self._cached(name):
            return Directory(cached.parent).read(cached.name, start, stop)
        received = bytearray()
        patiently(lambda: self._receive(name, start, stop, received))
        return bytes(received)

    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """The file in the Hub's cache; a download goes on where an earlier one stopped."""
        size = self._size(name)
        told = _Told(advance, size)
        if cached := self._cached(name):
            told.rest()
            return cached
        from huggingface_hub import constants, hf_hub_download

        with self._refusals.told(name):
            path = Path(
                hf_hub_download(
                    self._repo,
                    name,
                    revision=self._commit,
                    cache_dir=self._cache,
                    endpoint=constants.ENDPOINT,
                    **_watched_by(hf_hub_download, told),
                )
            )
        if (found := path.stat().st_size) != size:
            raise self._refusals.refusal(
                f"{name} of {self._called} is damaged in the local cache",
                expected=f"{size} bytes",
                found=f"{found} bytes",
                where=str(path),
                fix=f"delete {path.resolve()} and run the same command again",
            )
        self._note_commit()
        told.rest()
        return path

    def _cached(self, name: str) -> Path | None:
        """The whole file in the local cache, if it is there."""
        path = self._folder / "snapshots" / self._commit / name
        return path if path.is_file() and path.stat().st_size == self._sizes[name] else None

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            raise self._refusals.refusal(f"{self._called} has no file {name}", where=self.identity)
        return self._sizes[name]

    def _cached_commit(self) -> str:
        """The commit that the cache knows for the revision, if it holds any files of it."""
        commit = self._revision or "main"
        if (ref := self._ref()) and ref.is_file():
            commit = ref.read_text(errors="replace").strip()
        if not _COMMIT.fullmatch(commit) or not (self._folder / "snapshots" / commit).is_dir():
            raise self._refusals.refusal(
                f"{self._called} is not in the local cache, and huggingface_hub is offline",
                where=str(self._cache),
                fix="unset HF_HUB_OFFLINE to download it, or point HF_HUB_CACHE at the cache that holds it",
            )
        return commit

    def _ref(self) -> Path | None:
        """Where the cache notes the commit of the revision, if that is a branch or tag."""
        revision = self._revision or "main"
        plain = _REVISION.fullmatch(revision) and ".." not in revision and not revision.startswith("/")
        return self._folder / "refs" / revision if plain and not _COMMIT.fullmatch(revision) else None

    def _note_commit(self) -> None:
        """Lets the branch or tag be found offline too: huggingface_hub notes none when it is asked for a commit."""
        if ref := self._ref():
            with suppress(OSError):  # a cache that is only read serves as well
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(self._commit)

    def _ask(self) -> tuple[str, dict[str, int]]:
        """The commit and the files' sizes, from the Hub."""
        from huggingface_hub import HfApi, constants

        with self._refusals.told():
            try:
                info = HfApi(library_name="cuvee").model_info(
                    self._repo,
                    revision=self._revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                )
            except (KeyError, TypeError, AttributeError):
                raise self._refusals.odd_answer("another kind of description") from None
        files = {file.rfilename: file.size for file in info.siblings or ()}
        if not _COMMIT.fullmatch(str(info.sha)):
            raise self._refusals.odd_answer("no commit")
        if not all(isinstance(size, int) and size >= 0 and _is_plain(name) for name, size in files.items()):
            raise self._refusals.odd_answer("a file whose name leads elsewhere, or without a size")
        return str(info.sha), {name: size for name, size in sorted(files.items()) if size is not None}

    def _receive(self, name: str, start: int, stop: int, received: bytearray) -> None:
        """Appends to `received` what is still missing of bytes [start, stop), and never reads much more."""
        from huggingface_hub import constants, hf_hub_url

        url = hf_hub_url(self._repo, name, revision=self._commit, endpoint=constants.ENDPOINT)
        begin = start + len(received)
        with self._refusals.told(name), _answer_to(url, f"bytes={begin}-{stop - 1}") as answer:
            skip = self._bytes_to_skip(answer, name, begin)
            for chunk in _chunks(answer):
                part = chunk[skip:]
                skip -= min(skip, len(chunk))
                missing = stop - start - len(received)
                received += part[:missing]
                if len(part) >= missing and answer.status_code == HTTPStatus.OK:
                    break
                if len(part) > missing:
                    raise self._refusals.refusal(
                        f"{host()} sent more of {name} than asked for", fix="check HF_ENDPOINT"
                    )
        if len(received) < stop - start:
            raise self._refusals.refusal(f"{host()} broke off while sending {name}", kind=PassingError)

    def _bytes_to_skip(self, answer: Any, name: str, begin: int) -> int:
        """How many bytes of an answer lie before the wanted ones: none, unless the server does not know ranges."""
        status, headers = answer.status_code, answer.headers
        if status >= HTTPStatus.BAD_REQUEST:
            raise self._refusals.explained(status, headers, name)
        plain = headers.get("Content-Encoding", "identity") == "identity"
        span = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        if plain and status == HTTPStatus.PARTIAL_CONTENT and span and int(span[1]) == begin:
            return 0
        if plain and status == HTTPStatus.OK and begin <= _MAX_SKIPPED_BYTES:
            return begin
        raise self._refusals.refusal(
            f"{host()} cannot send parts of {name}",
            expected=f"an answer to a range request that starts at byte {begin}",
            found=f"another answer (HTTP {status})",
            fix="download the checkpoint with `hf download` and name its directory",
        )


@contextmanager
def _answer_to(url: str, span: str) -> Iterator[Any]:
    """The streamed answer to a range request; `Authorization` stays behind when another host is redirected to."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    options = {
        "headers": {**build_hf_headers(library_name="cuvee"), "Accept-Encoding": "identity", "Range": span},
        "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
    }
    if callable(getattr(session, "stream", None)):  # httpx; the sessions of requests have a setting of that name
        with session.stream("GET", url, **options) as answer:
            yield answer
    else:
        with session.get(url, stream=True, **options) as answer:
            yield answer


def _chunks(answer: Any) -> Iterator[bytes]:
    """The body as it arrives: what came before a connection broke is not lost."""
    yield from answer.iter_bytes() if hasattr(answer, "iter_bytes") else answer.iter_content(_CHUNK_BYTES)


def _is_plain(name: str) -> bool:
    """Whether a file's name stays inside the repository wherever it is put."""
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and not {"..", "."} & set(name.split("/"))
        and not re.search(r"[\\\0]", name)
    )
