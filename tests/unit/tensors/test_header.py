from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from cuvee.errors import CheckpointError
from cuvee.tensors.header import MAX_HEADER_BYTES, Header, build_header, read_header
from support.checkpoints import DTYPES, read_file, write_tensors


def parse(data: bytes) -> Header:
    return read_header(lambda start, stop: data[start:stop], len(data), "x.safetensors")


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DEEP = b"[" * 100_000
# What is wrong, the file, and words of the message.
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too short to hold a header"),
    "seven bytes": (b"\0" * 7, "too short to hold a header"),
    "header longer than the file": (file_of(b"{}", length=3), "does not fit"),
    "header of 2^64 bytes": (b"\xff" * 8 + b"{}", "does not fit"),
    "header of no bytes": (file_of(b""), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff\xfe":{}}'), "not UTF-8"),
    "not JSON": (file_of(b"{]"), "not JSON"),
    "JSON with a byte order mark": (file_of(b"\xef\xbb\xbf{}"), "not JSON"),
    "nested beyond all reason": (file_of(DEEP), "not JSON"),
    "a number beyond all reason": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "a list": (file_of(b"[]"), "not a JSON object"),
    "a number": (file_of(b"1"), "not a JSON object"),
    "metadata that is a list": (file_of({"__metadata__": []}), "__metadata__"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "a tensor that is null": (file_of({"a": None}), "lacks dtype"),
    "no dtype": (file_of({"a": {"shape": [], "data_offsets": [0, 0]}}), "lacks dtype"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "lacks dtype"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": []}}), "lacks dtype"),
    "an unknown dtype": (file_of({"a": entry("F31")}, b"\0" * 4), "dtype that is not known"),
    "a dtype in small letters": (file_of({"a": entry("f32")}, b"\0" * 4), "dtype that is not known"),
    "a dtype that is a number": (file_of({"a": entry(32)}, b"\0" * 4), "dtype that is not known"),
    "a dtype that is null": (file_of({"a": entry(None)}, b"\0" * 4), "dtype that is not known"),
    "a dtype that is a list": (file_of({"a": entry(["F32"])}, b"\0" * 4), "dtype that is not known"),
    "a dtype that is a map": (file_of({"a": entry({})}, b"\0" * 4), "dtype that is not known"),
    "a negative length": (file_of({"a": entry(shape=[-1])}, b"\0" * 4), "impossible shape"),
    "a fractional length": (file_of({"a": entry(shape=[1.0])}, b"\0" * 4), "impossible shape"),
    "a length that is true": (file_of({"a": entry(shape=[True])}, b"\0" * 4), "impossible shape"),
    "a length of 2^63": (file_of({"a": entry(shape=[2**63, 0])}, b"\0" * 4), "impossible shape"),
    "a shape that is a number": (file_of({"a": entry() | {"shape": 1}}, b"\0" * 4), "impossible shape"),
    "65 dimensions": (file_of({"a": entry(shape=[1] * 65)}, b"\0" * 4), "impossible shape"),
    "three offsets": (file_of({"a": entry(offsets=[0, 2, 4])}, b"\0" * 4), "impossible offsets"),
    "one offset": (file_of({"a": entry(offsets=[4])}, b"\0" * 4), "impossible offsets"),
    "offsets backwards": (file_of({"a": entry(offsets=[4, 0])}, b"\0" * 4), "impossible offsets"),
    "negative offsets": (file_of({"a": entry(offsets=[-4, 0])}, b"\0" * 4), "impossible offsets"),
    "offsets that are text": (file_of({"a": entry(offsets=["0", "4"])}, b"\0" * 4), "impossible offsets"),
    "offsets of NaN": (file_of(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[NaN,4]}}'), "impossible offsets"),
    "too few bytes for the shape": (file_of({"a": entry(shape=[2])}, b"\0" * 4), "do not match its shape"),
    "too many bytes for the shape": (file_of({"a": entry(shape=[0])}, b"\0" * 4), "do not match its shape"),
    "a shape of 2^64 elements": (file_of({"a": entry(shape=[2**32, 2**32])}, b"\0" * 4), "do not match its shape"),
    "a gap at the start": (file_of({"a": entry(offsets=[4, 8])}, b"\0" * 8), "leaves a gap"),
    "a gap between": (file_of({"a": entry(), "b": entry(offsets=[8, 12])}, b"\0" * 12), "'b' leaves a gap"),
    "an overlap": (file_of({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, b"\0" * 8), "overlaps"),
    "two tensors on the same bytes": (file_of({"a": entry(), "b": entry()}, b"\0" * 4), "'b' overlaps"),
    "cut short": (file_of({"a": entry()}, b"\0" * 3), "cut short"),
    "bytes after the last tensor": (file_of({"a": entry()}, b"\0" * 5), "longer than its tensors"),
    "bytes without tensors": (file_of({}, b"\0"), "longer than its tensors"),
    "a name twice": (file_of(b'{"a":1,"b":2,"a":3}'), "names 'a' twice"),
    "half a surrogate pair for a name": (file_of({"\ud800": entry()}, b"\0" * 4), "UTF-8|Unicode|text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_header_is_refused(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words) as caught:
        parse(data)
    assert caught.value.file == "x.safetensors"
    assert caught.value.fix


# NumPy has no arrays of so many dimensions; the format does not mind.
@pytest.mark.parametrize("case", sorted(REFUSED.keys() - {"65 dimensions"}))
def test_the_library_refuses_it_too(case: str) -> None:
    with pytest.raises(SafetensorError):
        deserialize(REFUSED[case][0])  # type: ignore[no-untyped-call]


def test_a_header_larger_than_the_limit_is_not_read() -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return (MAX_HEADER_BYTES + 1).to_bytes(8, "little")

    with pytest.raises(CheckpointError, match="does not fit"):
        read_header(read, 1 << 40, "x")
    assert asked == [(0, 8)]


def test_refusals_name_tensor_expectation_and_find() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(file_of({"w": entry("BF16", [3, 4], [0, 20])}, b"\0" * 20))
    assert caught.value.tensor == "w"
    assert caught.value.expected == "24 bytes for BF16 [3, 4]"
    assert caught.value.found == "20 bytes"


SHAPES = ((), (1,), (3,), (0,), (2, 0, 3), (2, 3, 4))


def test_files_of_the_library_are_read_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"{code}.{'x'.join(map(str, shape))}": np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        for code, dtype in DTYPES.items()
        for shape in SHAPES
    }
    path = write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt", "ключ": "wert ü"})
    data = path.read_bytes()
    header = parse(data)
    assert header.metadata == {"format": "pt", "ключ": "wert ü"}
    assert header.tensors.keys() == tensors.keys()
    for name, found in header.tensors.items():
        assert found.dtype == name.split(".")[0]
        assert found.shape == tensors[name].shape
        assert data[found.start : found.stop] == tensors[name].tobytes()


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda n: n != "__metadata__"
)
TENSORS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)), max_size=6
)
METADATA = st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3)


@given(TENSORS, METADATA)
@settings(deadline=None)
def test_what_is_written_is_read_by_us_and_by_the_library(
    wanted: Mapping[str, tuple[str, list[int]]], metadata: Mapping[str, str]
) -> None:
    rows = [
        (name, dtype, tuple(shape), int(np.prod(shape)) * DTYPES[dtype].itemsize)
        for name, (dtype, shape) in wanted.items()
    ]
    rows.sort(key=lambda row: -DTYPES[row[1]].itemsize)
    header = build_header(rows, metadata)
    assert len(header) % 8 == 0
    data = header + bytes(sum(count for *_, count in rows))
    ours = parse(data)
    assert [(name, e.dtype, e.shape, e.stop - e.start) for name, e in ours.tensors.items()] == rows
    assert ours.metadata == metadata
    theirs = {name: (view["dtype"], tuple(view["shape"])) for name, view in deserialize(data)}  # type: ignore[no-untyped-call]
    assert theirs == {name: (dtype, shape) for name, dtype, shape, _ in rows}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "I8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "F8_E4M3"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 9), st.integers(0, 9)) | JSON,
    },
)
TABLES = st.dictionaries(st.text(max_size=4), NEARLY | JSON, max_size=4) | JSON


def accepted(data: bytes) -> bool:
    """Whether a header is read; anything but success and a CheckpointError fails the test."""
    try:
        parse(data)
    except CheckpointError:
        return False
    return True


def accepted_by_library(data: bytes) -> bool:
    try:
        deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, UnicodeError):
        return False
    return True


@given(st.binary(max_size=200))
@example(b"")
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    if accepted(data):
        assert accepted_by_library(data)


@given(TABLES, st.binary(max_size=24), st.integers(-3, 3))
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(table: Any, data: bytes, slip: int) -> None:
    raw = json.dumps(table).encode()
    raw_file = file_of(raw, data, length=max(len(raw) + slip, 0))
    if accepted(raw_file):
        assert accepted_by_library(raw_file), "read here, though the library refuses it"


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_good_file_with_some_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    good = bytearray(file_of({"a": entry(shape=[2], offsets=[0, 8]), "b": entry("BF16", [1], [8, 10])}, b"\0" * 10))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    if accepted(bytes(good)):
        assert accepted_by_library(bytes(good))


def test_read_file_of_the_test_support_agrees(tmp_path: Path) -> None:
    """The oracle of other tests is the library: a file of ours must look the same to it."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = build_header([("w", "F32", (2, 3), 24)], {})
    (tmp_path / "ours.safetensors").write_bytes(header + values.tobytes())
    np.testing.assert_array_equal(read_file(tmp_path / "ours.safetensors")["w"], values)
