from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.deltas import LowRank
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.tensors.shared import SharedReader, change_of
from cuvee.tensors.sources import Source
from cuvee.tensors.updates import Added, Scaled
from support.checkpoints import write_checkpoint

F32 = np.dtype(np.float32)
RNG = np.random.default_rng(5)
VALUES = {"w": (6, 8), "other": (6, 8), **{f"a{i}": (2, 8) for i in range(3)}, **{f"b{i}": (6, 2) for i in range(3)}}
VALUES = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in VALUES.items()}


class Counting(FileReader):
    """Counts reads by the offset where they begin."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        self.reads[offset] += 1
        super().read_into(file, offset, target)


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Source]:
    return dict(open_checkpoint(Directory(write_checkpoint(tmp_path / "m", VALUES)), "m").tensors)


def on(base: Source, stored: dict[str, Source], number: int) -> Added:
    return Added(base, LowRank(stored[f"b{number}"], stored[f"a{number}"], 1.0, (6, 8)))


def test_the_base_is_read_once_a_range_and_factors_once_in_all(stored: dict[str, Source]) -> None:
    base = stored["w"]
    with Counting() as files:
        sources = [base, *(on(base, stored, i) for i in range(3))]
        reader = SharedReader(files, sources)
        blocks = [list(reader.together(start, start + 16, F32)) for start in range(0, 48, 16)]
    assert set(files.reads.values()) == {1}
    assert len(files.reads) == 3 + 6
    for number in range(3):
        got = np.concatenate([block[number + 1] for block in blocks]).reshape(6, 8)
        want = VALUES["w"].astype(np.float64) + VALUES[f"b{number}"].astype(np.float64) @ VALUES[f"a{number}"]
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_arrays_are_the_callers_own(stored: dict[str, Source]) -> None:
    base = stored["w"]
    with FileReader() as files:
        reader = SharedReader(files, [base, base, on(base, stored, 0), on(base, stored, 0)])
        arrays = []
        for array in reader.together(0, 48, F32):
            arrays.append(array.copy())
            array[:] = np.nan
    assert all(np.isfinite(array).all() for array in arrays)
    assert arrays[0].tobytes() == arrays[1].tobytes() == VALUES["w"].tobytes()
    assert arrays[2].tobytes() == arrays[3].tobytes()


def test_threads_do_not_meet(stored: dict[str, Source]) -> None:
    base = stored["w"]
    sources = [base, on(base, stored, 0), on(base, stored, 1)]
    with FileReader() as files:
        want = [array.copy() for array in SharedReader(files, sources).together(0, 48, F32)]
        reader = SharedReader(files, sources)

        def part(start: int) -> list[bytes]:
            return [array.tobytes() for array in reader.together(start, start + 4, F32)]

        with ThreadPoolExecutor(4) as pool:
            for start, got in zip(range(0, 48, 4), pool.map(part, range(0, 48, 4)), strict=True):
                assert got == [array[start : start + 4].tobytes() for array in want]


def test_what_is_added_is_known_without_subtracting(stored: dict[str, Source]) -> None:
    base = stored["w"]
    one = on(base, stored, 0)
    two = Added(one, on(base, stored, 1).delta)
    assert change_of(one, base) == one.delta
    assert change_of(one, stored["other"]) is None
    assert change_of(base, base) is None
    assert change_of(Scaled(base, stored["a0"], 1), base) is None
    assert change_of(Added(base, stored["other"], 2.0), base) is None
    change = change_of(two, base)
    assert change is not None
    with FileReader() as files:
        got = change.read(0, 48, files, F32)
    want = sum(VALUES[f"b{i}"].astype(np.float64) @ VALUES[f"a{i}"] for i in range(2))
    np.testing.assert_allclose(got.reshape(6, 8), want, atol=1e-6)
