from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.dequantised import Dequantised
from cuvee.tensors.location import Directory
from cuvee.tensors.parts import reshape
from cuvee.tensors.reader import FileReader
from cuvee.tensors.scales import block_of
from cuvee.tensors.sources import Stored, stored_pieces
from support.checkpoints import DTYPES, Array, write_checkpoint

RNG = np.random.default_rng(5)
# name -> (float8 code, shape of values, shape of scales, block)
CASES = {
    "tensor": ("F8_E4M3", (5, 7), (), (5, 7)),
    "vector": ("F8_E5M2", (9,), (1,), (9,)),
    "rows": ("F8_E4M3", (6, 5), (6, 1), (1, 5)),
    "blocks": ("F8_E4M3", (10, 11), (3, 3), (4, 4)),
    "flat blocks": ("F8_E5M2", (7, 9), (7, 3), (1, 4)),
    "experts": ("F8_E4M3", (3, 5, 7), (3, 2, 3), (1, 3, 3)),
}


def scaled(values: Array, scales: Array, block: tuple[int, ...]) -> Array:
    """Value times scale, element by element, in float64."""
    grid = scales.reshape([-(-n // b) for n, b in zip(values.shape, block, strict=True)]).astype(np.float64)
    product = np.empty(values.shape)
    for index in itertools.product(*map(range, values.shape)):
        product[index] = float(values[index]) * grid[tuple(i // b for i, b in zip(index, block, strict=True))]
    return product


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Dequantised], dict[str, Array]]:
    stored: dict[str, Array] = {}
    for name, (code, shape, scales, _) in CASES.items():
        stored[name] = (RNG.standard_normal(shape) * 20).astype(DTYPES[code])
        stored[f"{name}_scale"] = np.exp(RNG.standard_normal(scales)).astype(np.float32)
    found = open_checkpoint(Directory(write_checkpoint(tmp_path_factory.mktemp("f8"), stored)), "m").tensors
    sources = {}
    for name, (_, shape, _, block) in CASES.items():
        columns = -(-shape[-1] // block[-1])
        flat = reshape(found[f"{name}_scale"], (stored[f"{name}_scale"].size // columns, columns))
        values = found[name]
        assert isinstance(values, Stored)
        assert isinstance(flat, Stored)
        sources[name] = Dequantised(values, flat, block)
    products = {n: scaled(stored[n], stored[f"{n}_scale"], CASES[n][3]) for n in CASES}
    return sources, products


@given(st.sampled_from(sorted(CASES)), st.integers(0, 999), st.integers(0, 999))
@settings(max_examples=150, deadline=None)
def test_ranges_are_values_times_their_scales(files: tuple[dict, dict], name: str, start: int, length: int) -> None:  # type: ignore[type-arg]
    source, whole = files[0][name], files[1][name]
    start %= whole.size + 1
    stop = start + length % (whole.size - start + 1)
    with FileReader() as reader:
        exact = source.read(start, stop, reader, np.dtype(np.float64))
        single = source.read(start, stop, reader, np.dtype(np.float32))
    np.testing.assert_array_equal(exact, whole.ravel()[start:stop])
    np.testing.assert_array_equal(single, whole.ravel()[start:stop].astype(np.float32))
    assert source.shape == whole.shape


def test_extents_are_the_bytes_that_are_read(files: tuple[dict, dict]) -> None:  # type: ignore[type-arg]
    source = files[0]["blocks"]
    values, scales = source.extents(11 * 5, 11 * 9)  # rows 5 to 8, in the second and third row of blocks
    assert (values.offset - source.values.offset, values.count) == (55, 44)
    assert (scales.offset - source.scales.offset, scales.count) == (3 * 4, 6 * 4)
    assert list(source.extents(4, 4)) == []
    assert list(stored_pieces(source)) == [source.values, source.scales]


def bfloat16(value: Fraction) -> float:
    """The nearest bfloat16 of a normal number, ties to even."""
    exponent = 0
    size = abs(value)
    while size >= 2:
        size, exponent = size / 2, exponent + 1
    while size < 1:
        size, exponent = size * 2, exponent - 1
    steps = size * 128
    below = steps.numerator // steps.denominator
    rest = steps - below
    below += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
    return float(below * Fraction(2) ** (exponent - 7)) * (1 if value > 0 else -1)


# Products that float32 rounds onto the middle of two bfloat16: value x 2**3 and scale x 2**23.
TRAPS = [(9, 8475989), (9, 8534244), (11, 8746077), (11, 8793740), (13, 8408773), (13, 8610422), (15, 8895420)]


def test_sixteen_bits_are_rounded_once(tmp_path: Path) -> None:
    many = np.exp(RNG.standard_normal((400, 1))).astype(np.float32)
    values = np.array([[1.0, 1.5, 1.75, 240.0, 0.0625, -1.125, -1.375]] * 400, DTYPES["F8_E4M3"])
    scales = np.array([[scale / 2**23 * sign] for _, scale in TRAPS for sign in (1, -1)], np.float32)
    trap = np.array([[value / 8] for value, _ in TRAPS for _ in (1, -1)], DTYPES["F8_E4M3"])
    for s, v in ((many, values), (scales, trap)):
        folder = write_checkpoint(tmp_path / str(len(s)), {"w": v, "s": s})
        found = open_checkpoint(Directory(folder), "m").tensors
        source = Dequantised(found["w"], found["s"], (1, v.shape[1]))  # type: ignore[arg-type]
        with FileReader() as reader:
            read = source.read(0, v.size, reader, DTYPES["BF16"]).astype(float).reshape(v.shape)
        wanted = [
            [bfloat16(Fraction(float(x)) * Fraction(float(row[0]))) for x in line]
            for line, row in zip(v, s, strict=True)
        ]
        np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize(
    ("values", "scales", "stated", "block"),
    [
        ((256, 384), (2, 3), None, (128, 128)),
        ((257, 300), (3, 3), None, (128, 128)),
        ((576, 7168), (5, 56), (128, 128), (128, 128)),
        ((64, 96), (1, 1), None, (64, 96)),
        ((64, 96), (), None, (64, 96)),
        ((64, 96), (64, 1), None, (1, 96)),
        ((64, 96), (64,), None, (1, 96)),
        ((8, 64, 96), (8,), None, (1, 64, 96)),
        ((8, 256, 128), (8, 2, 1), None, (1, 128, 128)),
        ((64, 96), (2, 3), (32, 32), (32, 32)),
        ((64, 96), (2, 3), None, (32, 32)),
        ((64, 96), (64, 3), None, (1, 32)),
        ((64,), (1,), None, (64,)),
        ((64, 96), (3, 2), (32, 32), None),  # nothing says where a block of a third would end
        ((64, 96), (96,), None, None),
        ((64, 96), (65, 1), None, None),
        ((64, 96), (2, 3, 1), None, None),
        ((8, 64, 96), (4, 1, 1), None, None),
    ],
)
def test_blocks_are_told_by_shapes(
    values: tuple[int, ...], scales: tuple[int, ...], stated: tuple[int, ...] | None, block: tuple[int, ...] | None
) -> None:
    assert block_of(values, scales, stated) == block
