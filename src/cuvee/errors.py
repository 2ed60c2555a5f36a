"""The error tree: every way in which a user's merge can be refused.

    CuveeError
    ├── RecipeError       the recipe says something that cannot be meant   (file, line, path)
    ├── CheckpointError   a checkpoint's files are missing, corrupt or odd (checkpoint, tensor)
    ├── SourceError       a checkpoint cannot be reached: path, Hub, network
    ├── PlanError         recipe and checkpoints do not fit together, or do not fit the machine
    ├── MethodError       a method was declared or used wrongly
    ├── VocabularyError   tokenizers and embeddings do not agree
    └── OutputError       the result cannot be written

Each carries its facts as attributes, so that programs need not parse text. Inner code states the fact; the caller that
knows where adds it with `raise error.at(where) from None` or by passing `where`. Only the command line turns errors
into exit codes. This module knows nothing of what it reports.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


CONTINUE_WITH = "continue_with"
"""The fact that names an option with which the same command would go on; its raiser knows of one."""
_TOKEN = re.compile(r"\bhf_\w{16,}|(?<=://)[^/\s@]+@")
_MAX_TOLD = 3000
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def _bounded(text: str) -> str:
    """`text`, cut where a stranger's megabytes would fill the screen."""
    return text if len(text) <= _MAX_TOLD else f"{text[:_MAX_TOLD]}..."


def holds_token(text: str) -> bool:
    """Whether access tokens of the Hub, or a URL's name and password, stand in `text`."""
    return redacted(text) != text


def redacted(text: str) -> str:
    """`text` without access tokens of the Hub and without the names and passwords of URLs."""
    for variable in _TOKEN_VARIABLES:
        if len(token := os.environ.get(variable, "").strip()) >= 8:
            text = text.replace(token, "***")
    return _TOKEN.sub("***", text)


class CuveeError(Exception):
    """A refusal that says what failed, what was expected and found, where, and what to do."""

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        where: str | None = None,
        fix: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found
        self.where = where
        self.fix = fix
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        """Facts read as attributes: `error.tensor`, `error.line`."""
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def at(self, where: str, **facts: Any) -> Self:
        """The same error, told where it happened; a place known already stays."""
        self.where = self.where or where
        self.facts = {**facts, **self.facts}
        return self

    def __str__(self) -> str:
        rows = [("expected", self.expected), ("found", self.found), ("where", self.where), ("fix", self.fix)]
        told = [self.what, *(f"  {label + ':':<9} {text}" for label, text in rows if text)]
        return redacted("\n".join(map(_bounded, told)))


class RecipeError(CuveeError):
    """The recipe is wrong. Facts: `file`, `line` (from 1), `path` (like `models[1].parameters.weight`)."""


class CheckpointError(CuveeError):
    """A checkpoint's files are missing, corrupt or unreadable. Facts: `checkpoint`, `tensor`, `file`."""


class SourceError(CuveeError):
    """A checkpoint cannot be reached. Facts: `checkpoint`."""


class PlanError(CuveeError):
    """Recipe and checkpoints do not fit together or do not fit this machine. Facts: `tensor`."""


class MethodError(CuveeError):
    """A merge method was declared or called wrongly. Facts: `method`, `parameter`."""


class VocabularyError(CuveeError):
    """Tokenizers and embeddings do not agree."""


class OutputError(CuveeError):
    """The result cannot be written. Facts: `path`."""
