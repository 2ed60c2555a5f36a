"""Nodes of adapters against NumPy on whole arrays: every range, every dtype, and the same bytes for every cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.deltas import Hadamard, Kronecker, LowRank
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.tensors.shared import SharedReader
from cuvee.tensors.sources import Source, grain_of, is_verbatim, stored_pieces
from cuvee.tensors.updates import Added, Renormed, RowsReplaced, Run, Scaled
from support.checkpoints import Array, write_checkpoint

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
RNG = np.random.default_rng(3)
OUT, IN, RANK, EXPERTS = 7, 11, 3, 4
SHAPES = {
    "w": (OUT, IN), "a": (RANK, IN), "b": (OUT, RANK), "a2": (RANK, IN), "b2": (OUT, RANK),
    "ae": (EXPERTS * RANK, IN), "be": (OUT, RANK * EXPERTS), "we": (EXPERTS, OUT, IN),
    "conv": (OUT, 2, 3, 3), "ac": (RANK, 2, 3, 3), "bc": (OUT, RANK, 1, 1),
    "k1": (2, 3), "k2": (4, 5), "rows": (OUT,), "row_vector": (OUT, 1), "columns": (IN,), "bias": (OUT,),
    "tokens": (2, IN), "wide_a": (RANK, IN + 5), "tall_b": (OUT + 2, RANK), "bf": (OUT, IN),
}  # fmt: skip
VALUES = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
V = {name: value.astype(np.float64) for name, value in VALUES.items()}


def experts(transposed: bool) -> Array:
    """PEFT's sum over ranks, written as loops over experts."""
    found = []
    for e in range(EXPERTS):
        a = V["ae"][e * RANK : (e + 1) * RANK]
        b = np.stack([V["be"][:, k * EXPERTS + e] for k in range(RANK)], axis=1)
        found.append((b @ a).T if transposed else b @ a)
    return 0.5 * np.stack(found)


def dora(matrix: Array, lengths: Array, axis: int) -> Array:
    norms = np.sqrt((matrix * matrix).sum(axis=1 - axis))
    factor = lengths / norms
    return matrix * (factor[:, None] if axis == 0 else factor)


def replaced() -> Array:
    matrix = V["w"].copy()
    matrix[[5, 0]] = V["tokens"]
    return matrix


Make = Callable[[dict[str, Source]], Source]
NODES: dict[str, tuple[Make, Array]] = {
    "low rank": (lambda s: LowRank(s["b"], s["a"], 0.5, (OUT, IN)), 0.5 * V["b"] @ V["a"]),
    "transposed": (lambda s: LowRank(s["b"], s["a"], 0.5, (IN, OUT), True), 0.5 * (V["b"] @ V["a"]).T),
    "convolution": (
        lambda s: LowRank(s["bc"], s["ac"], 2.0, (OUT, 2, 3, 3)),
        2.0 * np.einsum("or,rihw->oihw", V["bc"][:, :, 0, 0], V["ac"]),
    ),
    "factors cut to size": (
        lambda s: LowRank(s["tall_b"], s["wide_a"], 1.0, (OUT, IN)),
        V["tall_b"][:OUT] @ V["wide_a"][:, :IN],
    ),
    "experts": (lambda s: LowRank(s["be"], s["ae"], 0.5, (EXPERTS, OUT, IN), experts=EXPERTS), experts(False)),
    "experts transposed": (
        lambda s: LowRank(s["be"], s["ae"], 0.5, (EXPERTS, IN, OUT), True, EXPERTS),
        experts(True),
    ),
    "one expert's lower rows": (
        lambda s: Run(LowRank(s["be"], s["ae"], 0.5, (EXPERTS, OUT, IN), experts=EXPERTS), (2 * OUT + 3) * IN, (4, IN)),
        experts(False)[2, 3:],
    ),
    "Hadamard": (
        lambda s: Hadamard(LowRank(s["b"], s["a"], 2.0, (OUT, IN)), LowRank(s["b2"], s["a2"], 1.0, (OUT, IN))),
        2.0 * (V["b"] @ V["a"]) * (V["b2"] @ V["a2"]),
    ),
    "Kronecker": (lambda s: Kronecker(s["k1"], s["k2"], 0.25), 0.25 * np.kron(V["k1"], V["k2"])),
    "added": (lambda s: Added(s["w"], LowRank(s["b"], s["a"], 0.5, (OUT, IN))), V["w"] + 0.5 * V["b"] @ V["a"]),
    "added twice": (
        lambda s: Added(Added(s["w"], LowRank(s["b"], s["a"], 0.5, (OUT, IN))), s["bf"]),
        V["w"] + 0.5 * V["b"] @ V["a"] + V["bf"],
    ),
    "added to a bias": (lambda s: Added(s["bias"], s["rows"], 3.0), V["bias"] + 3.0 * V["rows"]),
    "added to experts": (
        lambda s: Added(s["we"], LowRank(s["be"], s["ae"], 0.5, (EXPERTS, OUT, IN), experts=EXPERTS)),
        V["we"] + experts(False),
    ),
    "rows scaled": (lambda s: Scaled(s["w"], s["row_vector"], 0), V["w"] * V["row_vector"]),
    "columns scaled": (lambda s: Scaled(s["w"], s["columns"], 1), V["w"] * V["columns"]),
    "vector scaled": (lambda s: Scaled(Run(s["bias"], 0, (OUT, 1)), s["rows"], 0), (V["bias"] * V["rows"])[:, None]),
    "rows renormed": (lambda s: Renormed(s["w"], s["rows"], 0), dora(V["w"], V["rows"], 0)),
    "columns renormed": (lambda s: Renormed(s["w"], s["columns"], 1), dora(V["w"], V["columns"], 1)),
    "rows replaced": (lambda s: RowsReplaced(s["w"], s["tokens"], (5, 0)), replaced()),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = write_checkpoint(tmp_path_factory.mktemp("nodes") / "m", VALUES)
    return dict(open_checkpoint(Directory(folder), "m").tensors)


@pytest.mark.parametrize("name", NODES)
def test_whole(name: str, stored: dict[str, Source]) -> None:
    make, want = NODES[name]
    node = make(stored)
    assert node.shape == want.shape
    assert node.dtype == "F32"
    assert not is_verbatim(node)
    with FileReader() as reader:
        narrow = node.read(0, want.size, reader, F32)
        wide = node.read(0, want.size, reader, F64)
    assert narrow.dtype == F32
    np.testing.assert_allclose(narrow, want.reshape(-1), rtol=0, atol=1e-6 * abs(want).max())
    np.testing.assert_allclose(wide, want.reshape(-1), rtol=0, atol=1e-14 * abs(want).max())


@pytest.mark.parametrize("name", NODES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_range_is_that_part_of_the_whole(name: str, stored: dict[str, Source], data: st.DataObject) -> None:
    make, want = NODES[name]
    node = make(stored)
    start = data.draw(st.integers(0, want.size - 1))
    stop = data.draw(st.integers(start + 1, want.size))
    with FileReader() as files:
        reader = data.draw(st.sampled_from([files, SharedReader(files, (node,))]))
        whole = node.read(0, want.size, files, F32)
        assert node.read(start, stop, reader, F32).tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize("name", [name for name, (_, want) in NODES.items() if want.shape == (OUT, IN)])
def test_reading_changes_nothing_that_is_shared(name: str, stored: dict[str, Source]) -> None:
    node = NODES[name][0](stored)
    with FileReader() as files:
        alone = node.read(0, OUT * IN, files, F32)
        shared = SharedReader(files, (node, node, stored["w"], stored["w"], Scaled(node, stored["row_vector"], 0)))
        for _ in range(2):
            first, second, *_ = shared.together(0, OUT * IN, F32)
            assert first.tobytes() == second.tobytes() == alone.tobytes()
            first *= 2  # the caller's own


@pytest.mark.parametrize("name", NODES)
def test_json_keeps_it(name: str, stored: dict[str, Source]) -> None:
    node = NODES[name][0](stored)
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    assert adapter.validate_json(adapter.dump_json(node)) == node


@pytest.mark.parametrize("name", NODES)
def test_extents_cover_all_that_is_read(name: str, stored: dict[str, Source]) -> None:
    node = NODES[name][0](stored)
    read: set[int] = set()

    class Watching(FileReader):
        def read_into(self, file: str, offset: int, target: memoryview) -> None:
            read.update(range(offset, offset + len(target)))
            super().read_into(file, offset, target)

    size = int(np.prod(node.shape))
    with Watching() as reader:
        node.read(size // 3, size // 2, reader, F32)
    told = {byte for e in node.extents(size // 3, size // 2) for byte in range(e.offset, e.offset + e.count)}
    whole = {byte for e in node.extents(0, size) for byte in range(e.offset, e.offset + e.count)}
    if name == "columns renormed":  # a column's length needs all its rows
        told = whole
    row = {byte + shift for byte in told for shift in range(-4 * IN, 4 * IN + 1)}  # whole rows at either end
    assert read <= row
    assert read <= whole
    assert {piece.file for piece in stored_pieces(node)} == {extent.file for extent in node.extents(0, size)}


def test_one_rounding_to_a_narrow_dtype(stored: dict[str, Source]) -> None:
    import ml_dtypes

    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    make, want = NODES["added"]
    with FileReader() as reader:
        got = make(stored).read(0, OUT * IN, reader, bfloat16)
        exact = make(stored).read(0, OUT * IN, reader, F32)
    assert got.dtype == bfloat16
    assert got.tobytes() == exact.astype(bfloat16).tobytes()
    np.testing.assert_allclose(exact, want.reshape(-1), atol=1e-6)


def test_large_products_do_not_depend_on_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles: 7 rows of 9000 columns make one. BLAS may round as it likes for other numbers of rows."""
    multiply = np.matmul

    def whimsical(left: Array, right: Array, out: Array | None = None) -> Array:
        product = multiply(left, right) * np.float32(1 + 1e-6 * float(left[0, 0]))
        if out is None:
            return product
        out[:] = product
        return out

    monkeypatch.setattr(np, "matmul", whimsical)
    rows, columns, rank = 23, 9000, 5
    values = {
        "a": RNG.standard_normal((rank, columns)).astype(np.float32),
        "b": RNG.standard_normal((rows, rank)).astype(np.float32),
    }
    tensors = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", values)), "m").tensors
    node = LowRank(tensors["b"], tensors["a"], 1.5, (rows, columns))
    size = rows * columns
    assert grain_of(Added(tensors["a"], node)) == 7 * columns
    with FileReader() as reader:
        whole = node.read(0, size, reader, F32)
        for step in (1 << 10, 7 * columns, 50_001):
            parts = [node.read(i, min(i + step, size), reader, F32) for i in range(0, size, step)]
            assert np.concatenate(parts).tobytes() == whole.tobytes(), step
    exact = 1.5 * values["b"].astype(np.float64) @ values["a"].astype(np.float64)
    np.testing.assert_allclose(whole, exact.reshape(-1), atol=1e-3)
