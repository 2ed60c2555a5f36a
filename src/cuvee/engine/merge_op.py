"""One op: scan if the method asks for it, then every block through the method and out. The only loop over a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cuvee.derivations.registry import HELD_ELEMENTS
from cuvee.engine.derive_op import derive_op
from cuvee.engine.devices import Backend
from cuvee.engine.files import ShardFiles
from cuvee.engine.partition import ranges, row_length
from cuvee.engine.reads import Reads, reads_of
from cuvee.engine.survey import Surveyed
from cuvee.errors import CONTINUE_WITH, CheckpointError, MethodError
from cuvee.methods.registry import get_method
from cuvee.methods.spec import MethodSpec
from cuvee.methods.stages import merger
from cuvee.numerics.block import Array, Block
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.random import derive_key
from cuvee.numerics.scan import GRAIN, BlockMap, Range, Scan
from cuvee.numerics.scan import grain_of as grain_of_scan
from cuvee.planning.ops import TensorOp
from cuvee.tensors.dtypes import is_float, itemsize, numpy_dtype
from cuvee.tensors.reader import FileReader
from cuvee.tensors.shared import SharedReader
from cuvee.tensors.sources import Stored, grain_of

# The largest number of a dtype; and half a step above it, from where values round to infinity.
_LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38, "F32": 3.4028234663852886e38, "F64": 1.7976931348623157e308}
_OVERFLOW = {"F16": 65520.0, "BF16": 3.39617752923046e38, "F32": 3.4028235677973366e38, "F64": math.inf}


@dataclass(frozen=True)
class Work:
    """What every op of a run shares."""

    reader: FileReader
    output: ShardFiles
    backend: Backend
    seed: int
    block_elements: int
    allow_nonfinite: bool
    model_names: tuple[str, ...]
    advance: Callable[[int], None]
    check_stop: Callable[[], None]
    surveyed: Mapping[str, Surveyed] = field(default_factory=dict)
    """By op, what its method knows of the whole model."""


def serially(function: Callable[[Range], Any], spans: Iterable[Range]) -> Iterable[Any]:
    """The block map of a single thread."""
    return map(function, spans)


def run_op(op: TensorOp, work: Work, block_map: BlockMap[Any] = serially) -> None:
    """Writes one output tensor."""
    if op.derivation is not None:
        derive_op(op, work, block_map)
    elif op.size == 0:
        return
    elif op.method is None:
        _copy(op, work)
    else:
        _merge(op, work, block_map).run()


def block_reader(op: TensorOp, work: Work) -> Callable[[int, int], Block]:
    """What gives ranges of an op's tensor, as its method wants them."""
    merge = _merge(op, work, serially)

    def read(start: int, stop: int) -> Block:
        work.check_stop()
        return merge.read(start, stop)[0]

    return read


def _merge(op: TensorOp, work: Work, block_map: BlockMap[Any]) -> _Merge:
    spec = get_method(str(op.method))
    reads = reads_of(op, spec)
    return _Merge(op, work, spec, block_map, SharedReader(work.reader, reads.sources), reads)


def blocks_in(op: TensorOp, block_elements: int) -> int:
    """How many blocks an op has: what it can be shared out in."""
    if op.derivation is not None:
        shape = op.sources[0].shape
        return 1 if math.prod(shape) <= HELD_ELEMENTS else len(ranges(shape, "rows", GRAIN))
    return 1 if op.method is None else len(_spans(op, get_method(op.method), block_elements))


def _grain(op: TensorOp) -> int:
    return max(map(grain_of, op.sources), default=1)


def scan_of(op: TensorOp, work: Work) -> Scan:
    """What an op's method is prepared with."""
    return _merge(op, work, serially).scan()


def _spans(op: TensorOp, spec: MethodSpec, block_elements: int) -> tuple[Range, ...]:
    """The blocks of an op; those of its scan, where there is one: what a method keeps of them then serves twice."""
    return ranges(op.shape, spec.scope, block_elements, _grain(op))


def _copy(op: TensorOp, work: Work) -> None:
    """Bytes of the first source as they are; further sources must hold the same bytes."""
    first = op.sources[0]
    for other, model in zip(op.sources[1:], op.models[1:], strict=True):
        step = GRAIN
        dtype = numpy_dtype(op.dtype)
        for start in range(0, op.size, step):
            stop = min(start + step, op.size)
            mine, theirs = (source.read(start, stop, work.reader, dtype) for source in (first, other))
            if mine.tobytes() != theirs.tobytes():
                kept = is_float(op.dtype)
                why = "is held whole, not as a change" if kept else f"holds {op.dtype} values, which cannot be merged"
                raise CheckpointError(
                    f"tensor {op.name!r} {why}, and they differ",
                    expected=f"the same values as in {work.model_names[op.models[0]]}",
                    found=f"others in {work.model_names[model]}",
                    tensor=op.name,
                )
    if isinstance(first, Stored):
        for extent in first.extents(0, op.size):
            work.output.copy_from(work.reader.descriptor(extent.file), extent, op.shard, op.offset)
            work.advance(extent.count)
        return
    reader = SharedReader(work.reader, (first,))
    for start, stop in ranges(op.shape, "elements", work.block_elements):
        block = first.read(start, stop, reader, numpy_dtype(op.dtype))
        work.output.write(op.shard, op.offset + start * itemsize(op.dtype), block)
        work.advance(block.nbytes)


@dataclass(frozen=True)
class _Merge:
    """The merging of one tensor."""

    op: TensorOp
    work: Work
    spec: MethodSpec
    block_map: BlockMap[Any]
    reader: SharedReader
    reads: Reads

    def run(self) -> None:
        """Scans, merges and writes the tensor."""
        op, spec = self.op, self.spec
        arguments: dict[str, Any] = dict(op.parameters)
        prepared: tuple[Any, ...] = ()
        if op.name in self.work.surveyed:
            prepared = (self.work.surveyed[op.name].prepared,)
        elif spec.prepare is not None:
            scan = self.scan()
            prepared = (spec.prepare(scan, **{name: arguments[name] for name in spec.prepare_arguments}),)

        coefficients = self.reads.coefficients
        method = (
            merger(spec, self.scan, prepared, arguments)
            if coefficients is None
            else lambda block: weighted_sum(block.arrays, coefficients)
        )

        def merge(span: Range) -> None:
            self.work.check_stop()
            merged = self.merged(span, method, wide=False)
            if not self.fits(merged):
                # Perhaps only a sum on the way was too large for float32.
                wide = self.merged(span, method, wide=True)
                if self.fits(wide):
                    merged = wide
                elif not self.work.allow_nonfinite:
                    self.refuse_nonfinite(wide, *span)
            self.write(merged, span[0])

        spans = _spans(op, spec, self.work.block_elements)
        for _ in self.block_map(merge, spans):
            pass

    def merged(self, span: Range, method: Callable[[Block], Array], *, wide: bool) -> Any:
        """The merged values of a range; in float64 if `wide`."""
        block, base = self.read(*span, wide=wide)
        result = method(block)
        if math.prod(result.shape) != span[1] - span[0]:  # else it would be written over its neighbours
            raise MethodError(
                f"method {self.spec.name!r} gives arrays of another shape than it gets",
                expected=str(list(block[0].shape)),
                found=str(list(result.shape)),
                method=self.spec.name,
            )
        if base is None:
            return result
        if isinstance(result, np.ndarray) and result.dtype == base.dtype:
            return np.add(result, base, out=base)  # the base's own array: memory that is in the cache
        return result + base

    def fits(self, merged: Any) -> bool:
        """Whether all values are finite and stay so in the output's dtype."""
        bound = _OVERFLOW[self.op.dtype]
        low, high = float(merged.min()), float(merged.max())  # either is NaN if any element is
        return -bound < low and high < bound

    def scan(self) -> Scan:
        """The tensor, ready to be scanned: cut by its shape alone, so that sums are the same on every run."""
        op, spec = self.op, self.spec
        count = len(op.sources) - (op.has_base and spec.wants == "deltas")

        def read(start: int, stop: int) -> Block:
            self.work.check_stop()
            return self.read(start, stop)[0]

        return Scan(
            shape=op.shape,
            models=count,
            ranges=ranges(op.shape, spec.scope, grain_of_scan(len(op.sources)), _grain(op)),
            read=read,
            map=self.block_map,
            align=row_length(op.shape, spec.scope),
            grain=_grain(op),
        )

    def read(self, start: int, stop: int, *, wide: bool = False) -> tuple[Block, Any]:
        """The block of a range as the method wants it, and the base to add to the result (None if it wants weights)."""
        op, work, spec = self.op, self.work, self.spec
        doubles = wide or "F64" in (op.dtype, *(source.dtype for source in op.sources))
        dtype = np.dtype(np.float64 if doubles else np.float32)
        arrays = [work.backend.load(array) for array in self.reader.together(start, stop, dtype)]
        if spec.scope != "elements":
            columns = op.shape[-1] if op.shape else 1
            arrays = [array.reshape(-1, columns) for array in arrays]
        base = None
        if spec.wants == "deltas" and op.has_base:
            base, *arrays = arrays
            for place, array in enumerate(arrays):
                if place not in self.reads.changes:
                    np.subtract(array, base, out=array) if isinstance(array, np.ndarray) else array.sub_(base)
        surveyed = work.surveyed.get(op.name)
        first = start + surveyed.start if surveyed else start
        return Block(tuple(arrays), first, derive_key(work.seed, op.name)), base

    def write(self, merged: Any, start: int) -> None:
        """Rounds once and writes."""
        op, work = self.op, self.work
        rounded = work.backend.store(merged.reshape(-1), op.dtype)
        work.output.write(op.shard, op.offset + start * itemsize(op.dtype), rounded)
        work.advance(rounded.nbytes)

    def refuse_nonfinite(self, merged: Any, start: int, stop: int) -> None:
        """Says which model's values are not finite, or that the result does not fit the output's dtype."""
        op = self.op
        for source, model in zip(op.sources, op.models, strict=True):
            values = source.read(start, stop, self.work.reader, np.dtype(np.float64))
            if bad := int(values.size - np.isfinite(values).sum()):
                index = start + int(np.flatnonzero(~np.isfinite(values))[0])
                raise CheckpointError(
                    f"tensor {op.name!r} of {self.work.model_names[model]} holds values that are not finite",
                    found=f"{bad} NaN or infinite in elements {start} to {stop}, the first at {index}",
                    fix="use an undamaged checkpoint, or --allow-nonfinite to go on",
                    tensor=op.name,
                    checkpoint=self.work.model_names[model],
                    **{CONTINUE_WITH: "--allow-nonfinite"},
                )
        raise CheckpointError(
            f"the merged tensor {op.name!r} does not fit {op.dtype}",
            expected=f"values within +-{_LARGEST[op.dtype]:.5g}",
            found=f"values from {float(merged.min()):.5g} to {float(merged.max()):.5g}",
            fix="set out_dtype: bfloat16 or float32, or lower the weights; --allow-nonfinite goes on",
            tensor=op.name,
            **{CONTINUE_WITH: "--allow-nonfinite"},
        )
