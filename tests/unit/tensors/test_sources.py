from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Constant, Extent, Joined, Stored, stored_pieces
from support.checkpoints import DTYPES, Array, write_checkpoint

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
RNG = np.random.default_rng(1)
NAMES = {
    "BF16": (3, 4, 5),
    "F32": (3, 2, 5),
    "F16": (3, 4, 2),
    "F64": (1, 4, 5),
    "F8_E4M3": (2, 4, 5),
    "I64": (3, 4, 5),
}
VALUES = {code: RNG.integers(-8, 8, shape).astype(DTYPES[code]) for code, shape in NAMES.items()}


class Files:
    """Stored pieces of one file, and a reader of it."""

    def __init__(self, folder: Path) -> None:
        self.pieces = open_checkpoint(Directory(write_checkpoint(folder, VALUES)), "m").tensors
        self.reader = FileReader()

    def bytes_of(self, extents: Any) -> bytes:
        return b"".join(Path(e.file).read_bytes()[e.offset : e.offset + e.count] for e in extents)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    found = Files(tmp_path_factory.mktemp("pieces"))
    yield found
    found.reader.close()


@pytest.mark.parametrize("code", VALUES)
def test_stored_ranges(code: str, files: Files) -> None:
    source, whole = files.pieces[code], VALUES[code].ravel()
    for start, stop in [(0, whole.size), (0, 0), (1, 2), (7, 20), (whole.size, whole.size)]:
        for dtype in (F32, F64, DTYPES[code]):
            found = source.read(start, stop, files.reader, dtype)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, whole[start:stop].astype(dtype))
        (extent,) = source.extents(start, stop)
        assert files.bytes_of([extent]) == whole[start:stop].tobytes()


def test_what_is_read_is_ours_to_keep_and_change(files: Files) -> None:
    for dtype in (F32, F64):
        first = files.pieces["F32"].read(0, 10, files.reader, dtype)
        kept = first.copy()
        second = files.pieces["BF16"].read(0, 10, files.reader, dtype)
        second += 100
        np.testing.assert_array_equal(first, kept)
        assert first.flags.writeable
        assert not np.shares_memory(first, second)


JOINS = {
    0: ("BF16", "F64", "F8_E4M3", "BF16"),
    1: ("BF16", "F32", "BF16"),
    2: ("BF16", "F16"),
}


def joined(axis: int, files: Files) -> tuple[Joined, Array]:
    """Pieces side by side, and what NumPy makes of them."""
    codes = JOINS[axis]
    whole = np.concatenate([VALUES[code].astype(np.float64) for code in codes], axis)
    return Joined(tuple(files.pieces[code] for code in codes), axis), whole


@given(st.sampled_from(sorted(JOINS)), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_joined_ranges_are_those_of_the_concatenation(files: Files, axis: int, start: int, length: int) -> None:
    source, whole = joined(axis, files)
    start %= whole.size + 1
    stop = start + length % (whole.size - start + 1)
    assert source.shape == whole.shape
    np.testing.assert_array_equal(source.read(start, stop, files.reader, F32), whole.ravel()[start:stop])


@pytest.mark.parametrize("axis", JOINS)
def test_joined_extents_are_the_bytes_in_order(axis: int, files: Files) -> None:
    source, whole = joined(axis, files)
    extents = list(source.extents(3, whole.size - 2))
    values: list[float] = []
    for extent in extents:
        code = next(c for c, p in files.pieces.items() if p.offset <= extent.offset < p.offset + VALUES[c].nbytes)
        values += np.frombuffer(files.bytes_of([extent]), DTYPES[code]).astype(float).tolist()
    assert values == whole.ravel()[3:-2].tolist()


def test_joined_pieces_may_be_joined(files: Files) -> None:
    row = Joined((files.pieces["BF16"], files.pieces["F16"]), 2)
    nested = Joined((row, row), 1)
    one = np.concatenate([VALUES["BF16"].astype(float), VALUES["F16"].astype(float)], 2)
    whole = np.concatenate([one, one], 1)
    assert nested.shape == whole.shape
    assert nested.dtype == "F32"
    np.testing.assert_array_equal(nested.read(5, 77, files.reader, F32), whole.ravel()[5:77])
    assert [piece.dtype for piece in stored_pieces(nested)] == ["BF16", "F16", "BF16", "F16"]


def test_joined_dtype_holds_every_piece(files: Files) -> None:
    assert Joined((files.pieces["BF16"], files.pieces["BF16"]), 0).dtype == "BF16"
    assert Joined((files.pieces["BF16"], files.pieces["F64"]), 0).dtype == "F64"


def test_pieces_without_rows_join_to_what_the_others_hold(files: Files) -> None:
    nothing = Stored(files.pieces["F32"].file, files.pieces["F32"].offset, "F32", (3, 0, 5))
    source = Joined((nothing, files.pieces["F32"], nothing), 1)
    np.testing.assert_array_equal(source.read(0, 30, files.reader, F32), VALUES["F32"].ravel())
    assert list(Joined((nothing, nothing), 1).extents(0, 0)) == []
    assert Joined((nothing, nothing), 1).read(0, 0, files.reader, F32).size == 0


def test_extents_count_bytes() -> None:
    stored = Stored("f", 1000, "BF16", (10, 10))
    assert list(stored.extents(5, 25)) == [Extent("f", 1000 + 5 * itemsize("BF16"), 40)]


def test_constants_touch_no_file(files: Files) -> None:
    source = Constant(7, "I64", (2, 3))
    assert source.children == ()
    assert list(source.extents(0, 6)) == list(stored_pieces(source)) == []
    for dtype in (F32, np.dtype(np.int64)):
        found = source.read(1, 5, files.reader, dtype)
        assert found.dtype == dtype
        assert found.tolist() == [7] * 4
