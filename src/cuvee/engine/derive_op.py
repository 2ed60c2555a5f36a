"""One op that derives tensors from whole others: its sources offered in ranges, its outputs checked and written.

When and with which threads it runs is the engine's ordinary loop; what is computed is the derivation's affair.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.derivations.registry import Array, Input, Inputs, get_derivation
from cuvee.errors import CheckpointError
from cuvee.numerics.random import derive_key
from cuvee.numerics.scan import BlockMap
from cuvee.planning.ops import TensorOp
from cuvee.tensors.dtypes import narrow
from cuvee.tensors.sources import Source

if TYPE_CHECKING:
    from cuvee.engine.merge_op import Work


def derive_op(op: TensorOp, work: Work, block_map: BlockMap[Any]) -> None:
    """Writes every output of an op whose `derivation` is set.

    Raises:
        CheckpointError: if an output is not finite, or does not fit its dtype.

    """
    inputs = Inputs(tuple(_input(source, work) for source in op.sources), block_map, derive_key(work.seed, op.name))
    try:
        arrays = get_derivation(op.derivation or "")(inputs, **op.parameters)
    except np.linalg.LinAlgError as error:
        if (damaged := _damaged(op, work)) is not None:
            raise damaged from error
        raise
    for output, array in zip(op.outputs, arrays, strict=True):
        if array.shape != output.shape:
            raise ValueError(f"{op.derivation} gave {array.shape} for {output.name}, planned as {output.shape}")
        rounded = narrow(array, output.dtype)
        if not (work.allow_nonfinite or np.isfinite(rounded.astype(np.float64)).all()):
            raise _damaged(op, work) or CheckpointError(
                f"{output.name!r} came out with values that are not finite in {output.dtype}",
                fix="write float32, which holds larger values (--dtype float32; in a recipe, dtype: float32)",
                tensor=output.name,
            )
        work.output.write(output.shard, output.offset, rounded)
        work.advance(rounded.nbytes)


def _damaged(op: TensorOp, work: Work) -> CheckpointError | None:
    """The refusal of an input that holds values that are not finite, if one does."""
    for source, model in zip(op.sources, op.models, strict=True):
        values = source.read(0, math.prod(source.shape), work.reader, np.dtype(np.float64))
        if bad := int(values.size - np.isfinite(values).sum()):
            return CheckpointError(
                f"{work.model_names[model]} holds values that are not finite, and {op.name!r} is made of them",
                found=f"{bad} NaN or infinite among {values.size}",
                fix="use undamaged inputs",
                tensor=op.name,
                checkpoint=work.model_names[model],
            )
    return None


def _input(source: Source, work: Work) -> Input:
    dtype = np.dtype(np.float64 if source.dtype == "F64" else np.float32)

    def read(start: int, stop: int) -> Array:
        work.check_stop()
        return source.read(start, stop, work.reader, dtype)

    return Input(source.shape, read)
