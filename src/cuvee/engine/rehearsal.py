"""Ops run for real on made-up weights in memory, so that what they take can be measured before a merge.

Nothing is read from a file and nothing is written. What is measured is the caller's affair.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cuvee.engine.devices import NumpyBackend
from cuvee.engine.merge_op import Work
from cuvee.methods.registry import get_method
from cuvee.planning.ops import TensorOp
from cuvee.tensors.dtypes import is_float, itemsize, numpy_dtype
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import stored_pieces

_MATRIX_SIDE = 512
_POOL_BYTES = 1 << 20  # of made-up weights for a thread


def sample(op: TensorOp, elements: int) -> TensorOp:
    """The op, on the first rows of its tensor."""
    if get_method(op.method or "").scope == "matrix":
        shape = tuple(min(length, _MATRIX_SIDE) for length in op.shape)
    elif len(op.shape) > 1:
        columns = op.shape[-1]
        shape = (max(min(elements // max(columns, 1), op.size // max(columns, 1)), 1), columns)
    else:
        shape = (min(elements, op.size),)
    over = get_method(op.method or "").over
    alone = {**op.parameters, over: "tensor"} if over else op.parameters  # a scan of the whole model would be one
    return replace(op, shape=shape, offset=0, shard=0, parameters=alone)


def work_in_memory(op: TensorOp, number: int) -> Work:
    """What an op needs to be run on made-up weights; those of another `number` are others."""
    return Work(
        reader=_Pool(op, number),
        output=_Nowhere(),  # type: ignore[arg-type]
        backend=NumpyBackend(),
        seed=number,
        block_elements=NumpyBackend.block_elements,
        allow_nonfinite=True,
        model_names=tuple(map(str, range(max(op.models) + 1))),
        advance=lambda _: None,
        check_stop=lambda: None,
    )


class _Pool(FileReader):
    """A reader of made-up weights: the same small random pool again and again, a little different for each file."""

    def __init__(self, op: TensorOp, number: int) -> None:
        super().__init__()
        random = np.random.default_rng(number)
        count = _POOL_BYTES // 2 // len(op.sources)
        base = random.standard_normal(count, np.float32) * 0.02
        self._pools: dict[str, tuple[int, np.ndarray[Any, Any]]] = {}
        for position, source in enumerate(op.sources):
            moved = base + random.standard_normal(count, np.float32) * (0.002 * bool(position))
            for piece in stored_pieces(source):
                if piece.file not in self._pools:
                    dtype = numpy_dtype(piece.dtype)
                    values = moved.astype(dtype) if is_float(piece.dtype) else np.ones(count, dtype)
                    self._pools[piece.file] = (piece.offset % itemsize(piece.dtype), values.view(np.uint8))

    def read(self, file: str, offset: int, count: int) -> np.ndarray[Any, Any]:
        buffer = np.empty(count, np.uint8)
        self.read_into(file, offset, memoryview(buffer))  # type: ignore[arg-type]
        return buffer

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        shift, pool = self._pools[file]
        place, done, size = (offset - shift) % pool.size, 0, len(target)
        array = np.frombuffer(target, np.uint8)
        while done < size:
            step = min(size - done, pool.size - place)
            array[done : done + step] = pool[place : place + step]
            done, place = done + step, 0


class _Nowhere:
    """An output that keeps nothing."""

    def write(self, shard: int, offset: int, array: np.ndarray[Any, Any]) -> None:  # noqa: ARG002
        np.ascontiguousarray(array)
