"""The plan as data: frozen, serialisable, complete. It says what is to be done and knows nothing of how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.sources import Source, is_verbatim, stored_pieces

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Scalar = bool | int | float | str | None
ParameterValue = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the output: name, shape, safetensors dtype, the file it goes to and where in it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: int = 0
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class TensorOp:
    """One output tensor, or several that are derived together.

    Attributes:
        name: its name in the output.
        shape: its shape.
        dtype: safetensors code it is written in.
        shard: which output file, counted from 0.
        offset: byte offset of its first element in that file.
        sources: where values come from; the base first if `has_base`.
        models: for each source, the index of its model in `Plan.models`.
        has_base: whether the first source is the base that deltas are taken from (or that the method wants first).
        method: how sources become one; None copies the bytes of the first (the others must be equal).
        parameters: the method's arguments, resolved for this tensor.
        derivation: what makes the outputs of whole sources of any shapes, instead of a method (`cuvee.derivations`).
        further: what a derivation writes beside the tensor that the op is named after.

    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    offset: int
    sources: tuple[Source, ...]
    models: tuple[int, ...]
    has_base: bool
    method: str | None
    parameters: Mapping[str, ParameterValue]
    derivation: str | None = None
    further: tuple[Output, ...] = ()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every tensor that is written, the op's own first."""
        return (Output(self.name, self.shape, self.dtype, self.shard, self.offset), *self.further)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.size * itemsize(self.dtype) + sum(output.nbytes for output in self.further)

    @property
    def bytes_read(self) -> int:
        """Bytes of all sources; what several of them are made of counts once."""
        if all(map(is_verbatim, self.sources)):
            return sum(math.prod(source.shape) * itemsize(source.dtype) for source in {*self.sources})
        pieces = {piece for source in self.sources for piece in stored_pieces(source)}
        return sum(math.prod(piece.shape) * itemsize(piece.dtype) for piece in pieces)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """An input checkpoint: what the user called it, what it is beyond doubt, and a hash of its headers."""

    name: str
    identity: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Shard:
    """An output file: its name, its header with the length prefix, and its size in bytes."""

    name: str
    header: str
    size: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done where the models do not hold the same tensors, and the output tensors it was done to."""

    rule: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole merge.

    Attributes:
        models: the inputs; ops and reports refer to them by position.
        base: the model whose config and side files the output takes.
        ops: one for each output tensor, in the order of the output files.
        shards: the output files.
        seed: what random masks are drawn from.
        method: the recipe's merge method.
        config_edits: config paths (joined by dots) whose value changes with the layers, and the new values.
        dropped: input tensors that no output tensor is made of, as the recipe or a rule wants it: (model, tensor name).
        decisions: what was done about tensors that only some models have, or that are not merged for another reason.
        warnings: what the user should know before starting.
        version: Cuvee's own.

    """

    models: tuple[PlannedModel, ...]
    base: int
    ops: tuple[TensorOp, ...]
    shards: tuple[Shard, ...]
    seed: int
    method: str
    config_edits: Mapping[str, Any]
    dropped: tuple[tuple[int, str], ...]
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]
    version: str

    @property
    def bytes_read(self) -> int:
        """Bytes of all sources of all ops (methods that scan read some of them more than once)."""
        return sum(op.bytes_read for op in self.ops)

    @property
    def bytes_written(self) -> int:
        """Bytes of all output files."""
        return sum(shard.size for shard in self.shards)

    @property
    def elements(self) -> int:
        """Parameters of the output."""
        return sum(op.size for op in self.ops)

    @property
    def copied(self) -> int:
        """How many tensors are copied without arithmetic."""
        return sum(op.method is None for op in self.ops)


def plan_to_json(plan: Plan, indent: int | None = None) -> str:
    """The plan as JSON text."""
    return _plan_adapter().dump_json(plan, indent=indent).decode()


def plan_from_json(text: str | bytes) -> Plan:
    """The plan that `plan_to_json` wrote."""
    return _plan_adapter().validate_json(text)


@cache
def _plan_adapter() -> TypeAdapter[Plan]:
    from pydantic import TypeAdapter  # takes 0.1 s, and most merges never serialise a plan

    return TypeAdapter(Plan)
