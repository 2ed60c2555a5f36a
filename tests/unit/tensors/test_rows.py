from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.tensors.rowmaps import decode_map, encode_map, runs
from cuvee.tensors.rows import RowMean, Rows
from cuvee.tensors.shared import SharedReader
from cuvee.tensors.sources import Joined, Source, Stored, stored_pieces
from support.checkpoints import DTYPES, Array, write_checkpoint

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
RNG = np.random.default_rng(5)
VALUES = {
    "a": RNG.standard_normal((7, 4)).astype(np.float32),
    "b": RNG.standard_normal((9, 4)).astype(np.float32),
    "half": RNG.standard_normal((9, 4)).astype(DTYPES["BF16"]),
    "bias": RNG.standard_normal(7).astype(np.float32),
    "logits": RNG.standard_normal((1, 7)).astype(np.float32),
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(Directory(write_checkpoint(tmp_path_factory.mktemp("rows"), VALUES)), "m").tensors


@pytest.fixture(scope="module")
def reader() -> Iterator[FileReader]:
    with FileReader() as found:
        yield found


def gathered(tables: list[Array], maps: list[list[int]]) -> Array:
    """What `Rows` means, row by row in float64."""
    rows = []
    for place in range(len(maps[0])):
        given = [np.float64(table[own[place]]) for table, own in zip(tables, maps, strict=True) if own[place] >= 0]
        rows.append(sum(given) / len(given) if given else np.zeros_like(tables[0][0], np.float64))
    return np.stack(rows)


def rows_of(pieces: Any, names: list[str], maps: list[list[int]], axis: int = 0) -> Rows:
    texts = tuple(encode_map(np.array(own, np.int32)) for own in maps)
    return Rows(tuple(pieces[name] for name in names), texts, len(maps[0]), axis)


@given(st.lists(st.integers(-1, 2**31 - 1), max_size=300))
def test_a_map_comes_back_from_its_text(index: list[int]) -> None:
    array = np.array(index, np.int32)
    text = encode_map(array)
    np.testing.assert_array_equal(decode_map(text), array)
    assert text == encode_map(decode_map(text))


def test_a_large_map_is_small_as_text() -> None:
    index = np.concatenate([np.arange(150_000), np.full(30_000, -1), np.arange(0, 60_000, 2)]).astype(np.int32)
    assert len(encode_map(index)) < 6000


@given(st.lists(st.integers(0, 20), max_size=60))
def test_runs_cover_a_map(index: list[int]) -> None:
    found = [
        (position + i, first + i) for position, first, count in runs(np.array(index, np.int32)) for i in range(count)
    ]
    assert found == list(enumerate(index))


maps = st.integers(1, 12).flatmap(
    lambda length: st.tuples(
        st.lists(st.integers(-1, 6), min_size=length, max_size=length),
        st.lists(st.integers(-1, 8), min_size=length, max_size=length),
        st.tuples(st.integers(0, length * 4), st.integers(0, length * 4)),
    )
)


@settings(max_examples=200, deadline=None)
@given(maps, st.sampled_from(["b", "half"]))
def test_any_range_holds_the_rows_of_the_maps(pieces: Any, reader: FileReader, drawn: Any, second: str) -> None:
    first, other, ends = drawn
    start, stop = sorted(ends)
    source = rows_of(pieces, ["a", second], [first, other])
    exact = gathered([VALUES["a"], VALUES[second]], [first, other])
    assert source.shape == exact.shape
    for dtype in (F32, F64):
        got = source.read(start, stop, reader, dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, exact.astype(dtype).reshape(-1)[start:stop])


@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4, 5, 6], [6, 0, -1, 2, 3, 4, 1], [2, 3, 4]])
def test_a_single_table_is_copied_bit_for_bit(pieces: Any, reader: FileReader, own: list[int]) -> None:
    source = rows_of(pieces, ["half"], [own])
    got = source.read(0, len(own) * 4, reader, DTYPES["BF16"])
    assert source.dtype == "BF16"
    want = np.stack([VALUES["half"][row] if row >= 0 else np.zeros(4, DTYPES["BF16"]) for row in own])
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(("name", "axis"), [("bias", 0), ("logits", 1)])
def test_entries_of_biases_are_rows_of_one(pieces: Any, reader: FileReader, name: str, axis: int) -> None:
    source = rows_of(pieces, [name], [[6, -1, 0, 1, 2, 2]], axis)
    flat = VALUES[name].reshape(-1)
    assert source.shape == ((6,) if axis == 0 else (1, 6))
    want = [flat[6], 0, flat[0], flat[1], flat[2], flat[2]]
    np.testing.assert_array_equal(source.read(0, 6, reader, F32), np.float32(want))
    np.testing.assert_array_equal(source.read(2, 5, reader, F32), np.float32(want[2:5]))


def test_tables_may_be_any_source(pieces: Any, reader: FileReader) -> None:
    joined = Joined((pieces["a"], pieces["b"]), 0)
    source = Rows((joined,), (encode_map(np.array([15, 6, 7, 8, 0], np.int32)),), 5)
    whole = np.concatenate([VALUES["a"], VALUES["b"]])
    np.testing.assert_array_equal(source.read(0, 20, reader, F32), whole[[15, 6, 7, 8, 0]].reshape(-1))


def test_extents_hold_all_rows_that_are_read(pieces: Any) -> None:
    source = rows_of(pieces, ["a", "b"], [[3, -1, 5], [-1, 8, -1]])
    spans = [(e.offset - pieces[n].offset, e.count) for e, n in zip(source.extents(0, 12), "ab", strict=True)]
    assert spans == [(3 * 16, 3 * 16), (8 * 16, 16)]
    assert list(source.extents(4, 8)) == list(pieces["b"].extents(32, 36))
    assert {piece.shape for piece in stored_pieces(source)} == {(7, 4), (9, 4)}


def test_the_mean_row_is_the_mean_of_the_first_rows(pieces: Any, reader: FileReader) -> None:
    table = rows_of(pieces, ["a", "b"], [[3, -1, 5, 0], [-1, 8, -1, -1]])
    mean = RowMean(table, 3)
    exact = np.float64(np.stack([VALUES["a"][3], VALUES["b"][8], VALUES["a"][5]])).mean(axis=0)
    assert mean.shape == (1, 4)
    np.testing.assert_allclose(mean.read(0, 4, reader, F64), exact, rtol=1e-15)
    np.testing.assert_allclose(mean.read(1, 3, reader, F32), exact[1:3].astype(np.float32))
    assert [(e.offset, e.count) for e in mean.extents(0, 4)] == [(e.offset, e.count) for e in table.extents(0, 12)]


def test_a_mean_is_computed_once_a_tensor(pieces: Any, reader: FileReader, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = Stored.read
    monkeypatch.setattr(Stored, "read", lambda *given: (reads.append(given), plain(*given))[1])
    mean = RowMean(pieces["b"], 9)
    shared = SharedReader(reader, (mean,))
    for _ in range(3):
        mean.read(0, 4, shared, F32)
    assert len(reads) == 1


def test_nodes_survive_json_and_pickling(pieces: Any) -> None:
    rows = rows_of(pieces, ["a", "half"], [[0, -1, 3], [-1, 2, 4]])
    padded = Rows(
        (rows, RowMean(rows, 3)), (encode_map(np.int32([0, 1, 2, -1])), encode_map(np.int32([-1] * 3 + [0]))), 4
    )
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    assert adapter.validate_json(adapter.dump_json(padded)) == padded
    assert pickle.loads(pickle.dumps(padded)) == padded


def test_a_table_cut_short_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", {"t": np.ones((100, 4), np.float32)})
    (stored,) = open_checkpoint(Directory(folder), "m").tensors.values()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-16])
    source = Rows((stored,), (encode_map(np.array([99, 0], np.int32)),), 2)
    with FileReader() as reader, pytest.raises(Exception, match="ends before"):
        source.read(0, 8, reader, F32)
