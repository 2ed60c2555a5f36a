"""What a fine-tune changed in one matrix: how much, its singular values, and its low-rank factors.

Every derivation here takes two sources of one shape, the fine-tuned tensor and the base's, and looks at their
difference. Tensors of more than two dimensions count as matrices of `shape[0]` rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from cuvee.derivations.experts import joined
from cuvee.derivations.registry import HELD_ELEMENTS, Array, Input, Inputs, derivation
from cuvee.numerics.low_rank import balanced, singular_values, truncated_svd
from cuvee.numerics.row_blocks import RowBlocks
from cuvee.numerics.scan import GRAIN
from cuvee.tensors.dtypes import narrow

T = TypeVar("T")
STREAMED_ELEMENTS = 1 << 22  # of a difference too large to hold, seen at once: larger blocks make products cheaper


@derivation("change")
def change(inputs: Inputs) -> tuple[Array]:
    """The squared norm of the difference, `[1]`, summed in float64."""
    return (np.array([_streamed(inputs).squared_norm()]),)


@derivation("spectrum")
def spectrum(inputs: Inputs, *, count: int, total: float, experts: int = 0) -> tuple[Array]:
    """The `count` largest singular values of the difference, in float64: all from its Gram matrix, few by iteration.

    Args:
        inputs: the fine-tuned and the base's tensor.
        count: how many.
        total: the squared norm of the difference.
        experts: if not 0, so many matrices lie in the tensor; a value is then the root of the sum of their squares.

    """
    if experts:
        each = _of_each(
            inputs, experts, lambda part: spectrum(part, count=count, total=_streamed(part).squared_norm())[0]
        )
        return (np.sqrt(sum(np.square(values) for values in each)),)
    difference, _ = _tall(inputs)
    if count == min(difference.shape):
        return (singular_values(difference),)
    svd = truncated_svd(difference, count, total=total, key=inputs.key, exact=False)
    return (svd.values.astype(np.float64),)


@derivation("low_rank")
def low_rank(
    inputs: Inputs, *, rank: int, total: float, transposed: bool, distribute: bool, exact: bool, dtype: str, head: bool,
    experts: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """LoRA's A `[rank, in]` and B `[out, rank]`, the singular values `[rank]`, and two squared norms: total, missing.

    Args:
        inputs: the fine-tuned and the base's tensor.
        rank: of the factors.
        total: the squared norm of the difference.
        transposed: the tensor is stored `[in, out]`: embeddings, and linear layers of the Conv1D kind.
        distribute: give A and B the square roots of the singular values each; else A takes them whole.
        exact: by a full decomposition rather than a randomised one.
        dtype: what A and B are rounded to; the missing part is measured after that.
        head: give A and B of a head that shares an embedding's weights as well.
        experts: if not 0, so many matrices lie in the tensor: A is then `[experts * rank, in]` and B
            `[out, rank * experts]`, as PEFT lays them out, and a singular value the root of the sum of their squares.

    """
    if experts:
        parts = _of_each(
            inputs,
            experts,
            lambda part: low_rank(part, rank=rank, total=_streamed(part).squared_norm(), transposed=transposed,
                                  distribute=distribute, exact=exact, dtype=dtype, head=False),
        )  # fmt: skip
        downs, ups, values, squares = zip(*parts, strict=True)
        sums = np.sqrt(sum(np.square(each, dtype=np.float64) for each in values)).astype(np.float32)
        return *joined(list(zip(downs, ups, strict=True))), sums, np.sum(squares, axis=0)
    difference, turned = _tall(inputs)
    svd = truncated_svd(difference, rank, total=total, key=inputs.key, exact=exact)
    down, up = balanced(svd.transposed if turned != transposed else svd, distribute=distribute)
    down, up = narrow(down, dtype), narrow(up, dtype)
    wide_down, wide_up = (factor.astype(np.result_type(svd.values)) for factor in (down, up))
    as_seen = (wide_down.T, wide_up.T) if turned != transposed else (wide_up, wide_down)
    missing = difference.squared_distance(*as_seen)
    told = (svd.values.astype(np.float32), np.array([total, missing]))
    return (down, up, *told, up.T, down.T) if head else (down, up, *told)


def _of_each(inputs: Inputs, experts: int, function: Callable[[Inputs], T]) -> list[T]:
    """`function` of the matrices that lie one behind the other in the inputs, perhaps on several threads, in order."""
    shape = inputs[0].shape[1:]
    size = math.prod(shape)

    def of_one(span: tuple[int, int]) -> T:
        begin = span[0] * size

        def shifted(source: Input) -> Input:
            return Input(shape, lambda start, stop: source.read(begin + start, begin + stop))

        return function(Inputs(tuple(map(shifted, inputs.sources)), map, inputs.key))

    return list(inputs.map(of_one, [(number, number + 1) for number in range(experts)]))


def _tall(inputs: Inputs) -> tuple[RowBlocks, bool]:
    """The difference, and whether it is turned so that it has no more columns than rows (where it fits in memory)."""
    streamed = _streamed(inputs)
    if math.prod(streamed.shape) > HELD_ELEMENTS:
        return streamed, False
    whole = streamed.gathered()
    turned = whole.shape[0] < whole.shape[1]
    return RowBlocks.of(whole.T if turned else whole), turned


def _streamed(inputs: Inputs) -> RowBlocks:
    """The difference in blocks of rows, cut by its shape alone; a vector is one row."""
    shape = inputs[0].shape
    rows = shape[0] if len(shape) > 1 else 1
    columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    step = max(_block_elements(rows * columns) // max(columns, 1), 1)
    spans = tuple((start, min(start + step, rows)) for start in range(0, rows, step))

    def read(start: int, stop: int) -> Array:
        tuned, base = (source.read(start * columns, stop * columns) for source in inputs.sources)
        if tuned.dtype == base.dtype:
            np.subtract(tuned, base, out=tuned)
        else:
            tuned = tuned - base
        return tuned.reshape(stop - start, columns)

    def mapped(function: Any, wanted: Any) -> Any:
        return inputs.map(function, wanted)

    return RowBlocks((rows, columns), spans, read, mapped)


def _block_elements(size: int) -> int:
    """Small blocks for what is only streamed; larger ones amortise the products with big matrices."""
    return GRAIN if size <= HELD_ELEMENTS else STREAMED_ELEMENTS
