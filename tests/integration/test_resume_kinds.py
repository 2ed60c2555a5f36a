"""Merges of every kind go on where they were stopped, in one process or two, over an old output or a new one."""

from __future__ import annotations

from pathlib import Path

import pytest

import cuvee
from cuvee import MergeOptions
from cuvee.progress import Silent
from support.kinds import make_kinds

KINDS = ("surveyed", "folders", "vocabularies", "adapters")


class Names(Silent):
    """Keeps the names of finished tensors, and stops the merge after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.names: list[str] = []
        self._stop_after = stop_after

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        self.names.append(name)
        if len(self.names) == self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_kinds(tmp_path_factory.mktemp("kinds"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_of_any_kind_goes_on(kind: str, processes: int, kinds: dict[str, str], here: Path) -> None:
    text = kinds[kind]
    first = MergeOptions(processes=processes, threads=processes, out_shard_size="5k", overwrite=True)
    then = MergeOptions(processes=3 - processes, threads=2, out_shard_size="5k", overwrite=True, memory="512MiB")
    cuvee.merge(text, here / "whole" / "out", then)
    cuvee.merge("merge_method: passthrough\nmodels: [{model: " + str(here / "whole" / "out") + "}]\n", here / "out")
    old = files_of(here / "out")
    stopped = Names(stop_after=4)
    with pytest.raises(KeyboardInterrupt) as caught:
        cuvee.merge(text, here / "out", first, stopped)
    assert "kept:" in caught.value.__notes__[0]
    assert files_of(here / "out") == old
    going_on = Names()
    report = cuvee.merge(text, here / "out", then, going_on)
    assert report.resumed >= 4
    assert len(going_on.names) == report.merged + report.copied - report.resumed
    assert not set(going_on.names) & set(stopped.names[:4])
    assert files_of(here / "out") == files_of(here / "whole" / "out")
    assert sorted(path.name for path in here.iterdir()) == ["out", "whole"]
