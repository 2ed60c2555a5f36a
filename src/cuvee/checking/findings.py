"""What a check found, as data: one finding for each question asked of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "problem", "note", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        check: what was asked: `files`, `config`, `layers`, `head`, `ties`, `vocabulary`, `values`, `transformers` or
            `generation`.
        state: `ok`; `problem`, if the checkpoint is not what it should be; `note`, if it may be meant so; `skipped`.
        text: the answer in words.

    """

    check: str
    state: State
    text: str


@dataclass(frozen=True)
class CheckReport:
    """All findings about one checkpoint."""

    path: Path
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that say what is wrong."""
        return tuple(finding for finding in self.findings if finding.state == "problem")
