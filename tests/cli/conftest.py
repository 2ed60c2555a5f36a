"""Runs the real command line in this process and tells what it said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cuvee.cli import _run


@dataclass(frozen=True)
class Said:
    """A finished command."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def cuvee(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `cuvee ARGUMENTS` in an empty directory."""

    def run(*arguments: object, program: str = "cuvee") -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            _run([str(argument) for argument in arguments], program)
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Said(end.value.code, out, err)

    return run
