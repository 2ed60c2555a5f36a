from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuvee.engine import prefetch
from cuvee.engine.prefetch import Prefetcher
from cuvee.planning.ops import Plan
from cuvee.tensors import disk
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of


class Output:
    """Notes what is released of the output."""

    def __init__(self) -> None:
        self.released: list[tuple[int, int, int]] = []

    def release(self, shard: int, offset: int, count: int) -> None:
        self.released.append((shard, offset, count))


def plan(path: Path, count: int) -> Plan:
    np.zeros(count * 100, np.float32).tofile(path)
    ops = [
        op_of(f"t{i}", [Stored(str(path), i * 400, "F32", (100,))], "F32", "linear", {}, has_base=False)
        for i in range(count)
    ]
    return plan_of(ops, ["m"])


@pytest.mark.parametrize("release", [True, False])
def test_what_is_read_and_written_leaves_the_cache(
    release: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each op's output is released when it is done, and once more when it had time to reach the disk."""
    monkeypatch.setattr(prefetch, "_BEHIND", 1000)
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "release", lambda _, offset, count: read.append((offset, count)))
    planned, output = plan(tmp_path / "m", 6), Output()
    with FileReader() as reader:
        hints = Prefetcher(planned.ops, reader, output, release=release)  # type: ignore[arg-type]
        for op in planned.ops:
            hints.begin(op)
            hints.done(op)
    places = [(op.shard, op.offset, op.nbytes) for op in planned.ops]
    assert read == ([(i * 400, 400) for i in range(6)] if release else [])
    assert sorted(output.released) == (sorted(places + places[:4]) if release else [])
