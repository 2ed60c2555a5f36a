"""What goes wrong with the Hub, in words that say what to do; and what is worth another try.

No message repeats what a server said or the token that it was sent.
"""

from __future__ import annotations

import errno
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from cuvee.errors import SourceError

T = TypeVar("T")

_WAITS_SECONDS = (0.2, 0.6, 1.8)
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Refusals:
    """The errors of one repository.

    Attributes:
        repo: its id.
        revision: the one that was asked for.
        called: both, as messages name it.
        cache: where its files are kept.

    """

    repo: str
    revision: str | None
    called: str
    cache: Path

    @contextmanager
    def told(self, name: str | None = None) -> Iterator[None]:
        """Turns whatever the network and huggingface_hub raise into refusals that say what to do."""
        try:
            yield
        except _network_failures() as error:
            # The cause is left out on purpose: some libraries quote the headers that they could not send.
            raise self._of(error, name) from None

    def _of(self, error: Exception, name: str | None) -> SourceError:
        for known in (error, error.__cause__):
            if (answer := getattr(known, "response", None)) is not None:
                return self.explained(answer.status_code, answer.headers, name)
        if getattr(error, "errno", None) in _DISK_FAULTS:
            return self.refusal(
                f"cannot keep {name or 'files'} of {self.called}: {os.strerror(error.errno)}",  # type: ignore[attr-defined]
                where=str(self.cache),
                fix="free some space, or point HF_HUB_CACHE at another place",
            )
        if isinstance(error, ValueError) and not isinstance(error, FileNotFoundError):
            return self.odd_answer(type(error).__name__)
        return self.refusal(
            f"cannot reach {host()} for {self.called}",
            found=type(error).__name__,
            fix="check the network, proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 works with what is in the local cache",
            kind=PassingError,
        )

    def explained(self, status: int, headers: Mapping[str, str], name: str | None) -> SourceError:
        """What an answer that refuses means, and what can be done about it."""
        code, page = headers.get("X-Error-Code"), f"{host()}/{self.repo}"
        if code == "GatedRepo":
            what, fix = f"{self.repo} is gated", f"ask for access on {page}, then {_LOG_IN}"
        elif code == "RevisionNotFound":
            what, fix = f"{self.repo} has no revision {self.revision!r}", f"choose one that {page} lists"
        elif code == "EntryNotFound":
            what, fix = f"{self.called} has no file {name}", f"see the files on {page}"
        elif status == HTTPStatus.FORBIDDEN:
            what, fix = f"{host()} does not let this account read {self.repo}", f"{_LOG_IN} with one that may"
        elif status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}:
            what = f"{host()} has no model {self.repo}, or it is private"
            fix = f"check the spelling; for a private model, {_LOG_IN}; for a directory, write ./{self.repo}"
        elif status == HTTPStatus.TOO_MANY_REQUESTS:
            what, fix = f"{host()} asks for fewer requests", f"wait some minutes, or {_LOG_IN}"
        else:
            what, fix = f"{host()} cannot serve {self.called}", "try again later; if it stays, check HF_ENDPOINT"
        kind = PassingError if status in _PASSING_STATUS else SourceError
        return self.refusal(what, found=f"HTTP {status}", fix=fix, kind=kind, status=status)

    def odd_answer(self, found: str) -> SourceError:
        """The error for an answer that a Hub would not give."""
        what = f"{host()} does not describe {self.called} as the Hub does"
        return self.refusal(what, found=found, fix="check HF_ENDPOINT and HF_TOKEN")

    def refusal(self, what: str, kind: type[SourceError] = SourceError, **more: Any) -> SourceError:
        """An error that names the repository."""
        return kind(what, checkpoint=self.called, **more)


class PassingError(SourceError):
    """A refusal that may be gone a moment later."""


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, tried again a few times while its failure may pass."""
    for wait in _WAITS_SECONDS:
        try:
            return call()
        except PassingError:
            time.sleep(wait)
    return call()


def _network_failures() -> tuple[type[Exception], ...]:
    """What the HTTP library below huggingface_hub raises (requests, from 1.0 on httpx), and what odd answers cause."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    library = importlib.import_module(base.__module__.partition(".")[0])
    # hf_xet reports failed transfers as RuntimeError; an answer that is not JSON is a ValueError.
    return (base, getattr(library, "InvalidURL", base), OSError, ValueError, RuntimeError)


def host() -> str:
    """The Hub that is asked; a name and password in HF_ENDPOINT stay out."""
    from huggingface_hub import constants

    endpoint: str = constants.ENDPOINT
    return endpoint.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
