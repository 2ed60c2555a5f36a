"""How ops are shared out to worker processes: every one once, and the last chunks small."""

from __future__ import annotations

from cuvee.engine.processes import _LARGEST_CHUNK, _SMALLEST_CHUNK, _chunks
from cuvee.planning.ops import TensorOp
from cuvee.tensors.sources import Stored


def op(name: str, count: int) -> TensorOp:
    source = Stored("f", 0, "F32", (count,))
    return TensorOp(
        name, (count,), "F32", 0, 0, (source,), (0,), has_base=False, method="linear", parameters={"weight": (1.0,)}
    )


def test_chunks_hold_every_op_once_and_become_smaller() -> None:
    ops = [op(f"{i}", size) for i, size in enumerate([200 << 20, *[4 << 20] * 100, *[1000] * 300])]
    chunks = _chunks(ops, 2)
    assert sorted(each.name for chunk in chunks for each in chunk) == sorted(each.name for each in ops)
    sizes = [sum(each.bytes_read for each in chunk) for chunk in chunks]
    largest = max(each.bytes_read for each in ops)
    assert sizes[0] == largest  # an op that fills a chunk is one
    assert all(size <= _LARGEST_CHUNK for size in sizes[1:])
    assert sizes[-1] <= 2 * _SMALLEST_CHUNK
    assert sizes[1] > 3 * sizes[-1]


def test_few_ops_are_one_chunk_and_none_are_none() -> None:
    assert len(_chunks([op("a", 10), op("b", 10)], 2)) == 1
    assert _chunks([], 2) == []
