from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.engine.partition import ranges, row_length

Scope = Literal["elements", "rows", "matrix"]
SCOPES: tuple[Scope, ...] = ("elements", "rows", "matrix")


@given(st.lists(st.integers(0, 9), max_size=4).map(tuple), st.sampled_from(SCOPES), st.integers(1, 700))
@settings(deadline=None)
def test_ranges_cover_a_tensor_once_in_whole_rows(shape: tuple[int, ...], scope: Scope, block: int) -> None:
    found, row = ranges(shape, scope, block), row_length(shape, scope)
    size = math.prod(shape)
    assert [index for span in found for index in range(*span)] == list(range(size))
    assert all(start < stop and start % row == 0 and stop % row == 0 for start, stop in found)
    assert all(stop - start <= max(block, row) for start, stop in found)


@pytest.mark.parametrize(
    ("shape", "scope", "expected"),
    [((3, 4, 5), "elements", 1), ((3, 4, 5), "rows", 5), ((3, 4, 5), "matrix", 60), ((7,), "rows", 7), ((), "rows", 1),
     ((), "matrix", 1), ((3, 0), "rows", 1), ((0, 3), "matrix", 1)],
)  # fmt: skip
def test_what_must_stay_together(shape: tuple[int, ...], scope: Scope, expected: int) -> None:
    assert row_length(shape, scope) == expected


def test_blocks_by_hand() -> None:
    assert ranges((10,), "elements", 4) == ((0, 4), (4, 8), (8, 10))
    assert ranges((5, 3), "rows", 7) == ((0, 6), (6, 12), (12, 15))
    assert ranges((5, 3), "rows", 2) == ((0, 3), (3, 6), (6, 9), (9, 12), (12, 15))
    assert ranges((5, 3), "matrix", 2) == ((0, 15),)
    assert ranges((), "elements", 100) == ((0, 1),)
    assert ranges((0, 3), "rows", 100) == ()
