"""Before the ops run: what a method wants to know of the whole model, found by scanning all its tensors as if one.

A method says by a parameter marked `Over` whether its `prepare` sees one tensor or the model. The tensors of an op list
that share models and the parameters that `prepare` reads are laid end to end, in the order of the plan, and scanned in
ranges that no tensor's end cuts across; so selection and sums are the ones that single tensors get, exact, streamed and
independent of threads. Files and threads are the caller's.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cuvee.engine.partition import ranges
from cuvee.methods.registry import get_method
from cuvee.numerics.arrays import namespace
from cuvee.numerics.block import Block
from cuvee.numerics.scan import BlockMap, Range, Scan, grain_of
from cuvee.planning.ops import TensorOp

_MOST_RANGES = 15  # as a power of 2: a selection keeps a few numbers of each range, so there must not be millions
_LARGEST_GRAIN = 1 << 21

BlockReader = Callable[[TensorOp], Callable[[int, int], Block]]
"""Gives, for an op, what reads ranges of its tensor as its method wants them."""
_OPEN = 64  # readers at hand: the ranges in progress lie in a few neighbouring tensors, and a reader may keep factors


@dataclass(frozen=True)
class Surveyed:
    """What `prepare` made of the model, and where an op's tensor begins in it."""

    prepared: Any
    start: int


def survey(ops: Iterable[TensorOp], reader: BlockReader, block_map: BlockMap[Any]) -> dict[str, Surveyed]:
    """For each op whose method is to be prepared for the whole model: the result, and the op's place in the model.

    Args:
        ops: all of a plan's ops, whichever of them are to be run.
        reader: opens an op for reading.
        block_map: maps a function over ranges, in order.
    """
    groups: dict[tuple[Any, ...], list[TensorOp]] = {}
    for op in ops:
        if op.size and is_surveyed(op):
            groups.setdefault(_kin(op), []).append(op)
    found: dict[str, Surveyed] = {}
    for members in groups.values():
        spec = get_method(str(members[0].method))
        if spec.prepare is None:
            continue
        starts = [0, *itertools.accumulate(op.size for op in members)]
        arguments = {name: members[0].parameters[name] for name in spec.prepare_arguments}
        prepared = spec.prepare(_end_to_end(members, starts, reader, block_map), **arguments)
        found.update((op.name, Surveyed(prepared, start)) for op, start in zip(members, starts, strict=False))
    return found


def is_surveyed(op: TensorOp) -> bool:
    """Whether the op's method is prepared for the whole model rather than for its tensor."""
    over = get_method(op.method).over if op.method is not None else None
    return over is not None and op.parameters[over] == "model"


def _kin(op: TensorOp) -> tuple[Any, ...]:
    """What ops must share to be prepared together."""
    wanted = get_method(str(op.method)).prepare_arguments
    return (op.method, op.models, op.has_base, *(op.parameters[name] for name in wanted))


def _end_to_end(ops: Sequence[TensorOp], starts: Sequence[int], reader: BlockReader, block_map: BlockMap[Any]) -> Scan:
    """The ops' tensors as one long one."""
    grain = max(grain_of(len(ops[0].sources)), min(1 << (starts[-1] >> _MOST_RANGES).bit_length(), _LARGEST_GRAIN))
    spans: list[Range] = [
        (start + begin, start + end)
        for op, start in zip(ops, starts, strict=False)
        for begin, end in ranges(op.shape, "elements", grain)
    ]

    opened = lru_cache(_OPEN)(lambda i: reader(ops[i]))

    def read_across(start: int, stop: int) -> Block:
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, stop - 1)
        parts = [opened(i)(max(start - starts[i], 0), min(stop, starts[i + 1]) - starts[i]) for i in range(first, last)]
        if len(parts) == 1:
            return Block(parts[0].arrays, start)
        joined = (namespace(arrays[0]).concat(arrays) for arrays in zip(*parts, strict=True))
        return Block(tuple(joined), start)

    deltas = get_method(str(ops[0].method)).wants == "deltas" and ops[0].has_base
    return Scan(
        shape=(starts[-1],),
        models=len(ops[0].sources) - deltas,
        ranges=tuple(spans),
        read=read_across,
        map=block_map,
    )
