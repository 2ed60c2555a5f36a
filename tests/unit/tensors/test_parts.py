"""Parts and reshaped tensors, against NumPy's slices; and all kinds of sources through JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.dequantised import Dequantised
from cuvee.tensors.location import Directory
from cuvee.tensors.parts import Part, Reshaped, part_of, reshape
from cuvee.tensors.reader import FileReader
from cuvee.tensors.shared import SharedReader
from cuvee.tensors.sources import Joined, Source, Stored
from cuvee.tensors.transposed import Transposed, transposed
from support.checkpoints import DTYPES, Array, write_checkpoint

WHOLE = np.arange(5 * 4 * 6, dtype=np.float32).reshape(5, 4, 6)
F32 = np.dtype(np.float32)


class Files:
    """One tensor stored, and read."""

    def __init__(self, folder: Path) -> None:
        tensors = {
            "w": WHOLE,
            "f8": (WHOLE[0] % 8).astype(DTYPES["F8_E4M3"]),
            "scale": np.full((2, 3), 0.5, np.float32),
        }
        found = open_checkpoint(Directory(write_checkpoint(folder, tensors)), "m").tensors
        self.stored, self.float8, self.scale = found["w"], found["f8"], found["scale"]
        self.reader = FileReader()

    def read(self, source: Source, start: int, stop: int) -> Array:
        return source.read(start, stop, self.reader, F32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    found = Files(tmp_path_factory.mktemp("parts"))
    yield found
    found.reader.close()


@given(st.integers(0, 2), *(st.integers(0, 500) for _ in range(4)))
@settings(max_examples=200, deadline=None)
def test_parts_are_slices(files: Files, axis: int, a: int, b: int, c: int, d: int) -> None:
    begin, end = sorted((a % (WHOLE.shape[axis] + 1), b % (WHOLE.shape[axis] + 1)))
    wanted = WHOLE[tuple(slice(begin, end) if i == axis else slice(None) for i in range(3))]
    start, stop = sorted((c % (wanted.size + 1), d % (wanted.size + 1)))
    for source in (Part(files.stored, axis, begin, end), part_of(files.stored, axis, begin, end)):
        assert source.shape == wanted.shape
        assert source.dtype == "F32"
        np.testing.assert_array_equal(files.read(source, start, stop), wanted.ravel()[start:stop])
        raw = b"".join(Path(e.file).read_bytes()[e.offset : e.offset + e.count] for e in source.extents(start, stop))
        assert raw == wanted.ravel()[start:stop].tobytes()


def test_parts_of_anything(files: Files) -> None:
    fused = Joined((files.stored, files.stored), 1)
    wanted = np.concatenate([WHOLE, WHOLE], 1)[:, 3:6]
    source = Part(fused, 1, 3, 6)
    np.testing.assert_array_equal(files.read(source, 7, 60), wanted.ravel()[7:60])
    scaled = Dequantised(files.float8, files.scale, (2, 2))  # type: ignore[arg-type]
    rows = Part(scaled, 0, 1, 3)
    np.testing.assert_array_equal(files.read(rows, 0, 12), WHOLE[0, 1:3].ravel() % 8 * 0.5)
    assert [piece.shape for piece in (rows, scaled)] == [(2, 6), (4, 6)]


def test_rows_that_lie_together_stay_one_stored_tensor(files: Files) -> None:
    row = part_of(files.stored, 0, 2, 3)
    assert isinstance(row, Stored)
    inner = part_of(reshape(row, (4, 6)), 0, 1, 3)
    assert isinstance(inner, Stored)
    assert inner.shape == (2, 6)
    np.testing.assert_array_equal(files.read(inner, 0, 12), WHOLE[2, 1:3].ravel())
    assert isinstance(part_of(files.stored, 1, 0, 2), Part)
    assert part_of(files.stored, 1, 0, 4) is files.stored


def test_reshaped_tensors_hold_the_same_elements(files: Files) -> None:
    assert reshape(files.stored, WHOLE.shape) is files.stored
    assert reshape(files.stored, (20, 6)).shape == (20, 6)
    joined = reshape(Joined((files.stored, files.stored), 1), (2, 5, 4, 6))
    assert isinstance(joined, Reshaped)
    assert joined.shape == (2, 5, 4, 6)
    np.testing.assert_array_equal(files.read(joined, 3, 200), np.concatenate([WHOLE, WHOLE], 1).ravel()[3:200])
    assert list(joined.extents(0, 48)) == list(joined.flat.extents(0, 48))


@settings(max_examples=60)
@given(st.integers(0, 4), st.integers(0, 500), st.integers(0, 500), st.sampled_from([1, 40, 1 << 19]))
def test_turned_matrices(files: Files, kind: int, start: int, stop: int, kept: int) -> None:
    """Any range of a stack, a stored matrix, a joined one, a part, and one of float8; with bands kept and without."""
    scaled = Dequantised(files.float8, files.scale, (2, 2))  # type: ignore[arg-type]
    flat = reshape(files.stored, (20, 6))
    source = (files.stored, flat, Joined((flat, reshape(files.stored, (20, 6))), 0), Part(flat, 1, 1, 4), scaled)[kind]
    whole = files.read(source, 0, int(np.prod(source.shape))).reshape(source.shape)
    turned = transposed(source)
    wanted = whole.swapaxes(-1, -2)
    assert turned.shape == wanted.shape
    start, stop = sorted((start % (wanted.size + 1), stop % (wanted.size + 1)))
    shared = SharedReader(files.reader, [turned])
    with patch("cuvee.tensors.transposed._KEPT_ELEMENTS", kept):
        for reader in (files.reader, shared, shared):
            got = turned.read(start, stop, reader, F32)
            np.testing.assert_array_equal(got, wanted.reshape(-1)[start:stop])
            got = turned.read(start // 2, stop, reader, F32)
            np.testing.assert_array_equal(got, wanted.reshape(-1)[start // 2 : stop])
    assert transposed(turned) is source


@pytest.mark.parametrize("kept", [1, 8, 16, 40, 1 << 19])
def test_turned_matrices_row_by_row(files: Files, kept: int) -> None:
    shared = SharedReader(files.reader, [])
    rows = WHOLE.swapaxes(1, 2).reshape(-1, 4)
    with patch("cuvee.tensors.transposed._KEPT_ELEMENTS", kept):
        for row in (*range(30), *range(29, 0, -1)):
            got = Transposed(files.stored).read(4 * row, 4 * row + 4, shared, F32)
            np.testing.assert_array_equal(got, rows[row])


def test_a_band_of_a_turned_matrix_touches_no_other_matrix(files: Files) -> None:
    """Row 2 of the second of five matrices: its third column, from the first row's to the last row's."""
    [extent] = Transposed(files.stored).extents(24 + 8, 24 + 12)
    stored = files.stored
    assert isinstance(stored, Stored)
    assert (extent.offset, extent.count) == (stored.offset + 4 * (24 + 2), 4 * (3 * 6 + 1))


def test_sources_survive_json(files: Files) -> None:
    scaled = Dequantised(files.float8, files.scale, (2, 2))  # type: ignore[arg-type]
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    for source in (
        scaled,
        Part(scaled, 0, 1, 3),
        Reshaped(Joined((Part(files.stored, 1, 0, 2), files.stored), 1), (30, 6)),
        Joined((reshape(files.stored, (20, 6)), Reshaped(scaled, (4, 6))), 0),
        Transposed(Part(scaled, 0, 1, 3)),
    ):
        again = adapter.validate_json(adapter.dump_json(source))
        assert again == source
        assert type(again) is type(source)
