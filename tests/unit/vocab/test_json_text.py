"""JSON read and written as Python's own module does it."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.vocab.json_text import parsed, without_collections, written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert parsed(json.dumps(value).encode()) == value
    assert json.loads(written(value)) == value
    assert "\n" not in written(value)


@pytest.mark.parametrize(
    "text",
    [b'\xef\xbb\xbf{"a": 1}', '{"a": "é"}'.encode("utf-16"), b'{"a": "\\ud800"}', b'{"a": 1, "a": 2}', b"[Infinity]"],
)
def test_odd_texts_are_read_as_python_reads_them(text: bytes) -> None:
    assert parsed(text) == json.loads(text)


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": "\xff"}', b"[1,]", b"\x00"])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(text)


def test_half_a_pair_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"surrogate"):
        written({"a": "\ud800"})


def test_collections_go_on_afterwards_as_they_were() -> None:
    for was_on in (True, False):
        (gc.enable if was_on else gc.disable)()
        try:
            with without_collections():
                assert not gc.isenabled()
            assert gc.isenabled() is was_on
        finally:
            gc.enable()
