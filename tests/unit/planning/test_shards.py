from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from cuvee.planning.ops import TensorOp
from cuvee.planning.shards import lay_out
from cuvee.tensors.sources import Stored
from support.checkpoints import DTYPES
from support.merging import op_of


def draft(name: str, dtype: str, shape: tuple[int, ...]) -> TensorOp:
    return op_of(name, [Stored("f", 0, dtype, shape)], dtype, None, {}, has_base=False)


DRAFTS = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 7), max_size=3).map(tuple)), max_size=25
).map(lambda rows: [draft(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(rows)])


@given(DRAFTS, st.integers(1, 2000))
@settings(max_examples=150, deadline=None)
def test_any_tensors_lie_where_the_library_finds_them(drafts: Sequence[TensorOp], limit: int) -> None:
    ops, shards = lay_out(drafts, limit, {"format": "pt", "k": "v"})
    assert sorted(op.name for op in ops) == sorted(op.name for op in drafts), "each tensor has one place"
    assert [op.shard for op in ops] == sorted(op.shard for op in ops)
    for number, shard in enumerate(shards):
        text = shard.header.encode()
        header = len(text).to_bytes(8, "little") + text
        assert len(header) % 8 == 0
        inside = [op for op in ops if op.shard == number]
        position = len(header)
        for op in inside:
            assert op.offset == position, "no gaps"
            assert op.offset % DTYPES[op.dtype].itemsize == 0, "aligned to its own elements"
            position += op.nbytes
        assert position == shard.size
        total = sum(op.nbytes for op in inside)
        assert total <= limit or len([op for op in inside if op.nbytes]) == 1, "a file holds no more than it may"
        views = deserialize(header + bytes(total))  # type: ignore[no-untyped-call]
        found = {name: (view["dtype"], tuple(view["shape"])) for name, view in views}
        assert found == {op.name: (op.dtype, op.shape) for op in inside}
        entries = json.loads(text)
        assert entries.pop("__metadata__") == ({"format": "pt", "k": "v"} if number == 0 else {"format": "pt"})
        for op in inside:
            start, stop = entries[op.name]["data_offsets"]
            assert (start + len(header), stop - start) == (op.offset, op.nbytes)


def names_of(count: int, limit: int) -> list[str]:
    _, shards = lay_out([draft(f"t{i}", "F32", (10,)) for i in range(count)], limit, {})
    return [shard.name for shard in shards]


def test_names_are_the_hubs() -> None:
    assert names_of(3, 120) == ["model.safetensors"]
    assert names_of(3, 119) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names_of(12, 40)[-1] == "model-00012-of-00012.safetensors"
    assert names_of(12, 1)[0] == "model-00001-of-00012.safetensors"


def test_files_follow_the_order_of_the_tensors() -> None:
    """What is read first is written first: a later file never holds an earlier tensor."""
    drafts = [draft(f"t{i}", dtype, (5,)) for i, dtype in enumerate(["BF16", "F32", "I8", "F64", "F32"])]
    ops, _ = lay_out(drafts, 35, {})
    assert [[op.name for op in ops if op.shard == n] for n in range(3)] == [["t1", "t0", "t2"], ["t3"], ["t4"]]


def test_no_tensors_make_one_empty_file() -> None:
    ops, (shard,) = lay_out([], 100, {})
    assert ops == ()
    assert deserialize(len(shard.header).to_bytes(8, "little") + shard.header.encode()) == []  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["ключ", "a\nb", 'quo"te', "\U0001f377"])
def test_any_name_can_be_written(name: str) -> None:
    _, (shard,) = lay_out([draft(name, "U8", (1,))], 100, {})
    raw = shard.header.encode()
    assert deserialize(len(raw).to_bytes(8, "little") + raw + b"\0")[0][0] == name  # type: ignore[no-untyped-call]
