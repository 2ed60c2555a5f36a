"""Adapters on parameters rather than modules (PEFT's `target_parameters`): the stacked weights of a block of experts.

In memory the experts' weights are stacked, `[experts, out, in]` or `[experts, in, out]`, gate above up; on disk they
may lie one by one. PEFT does not say which of a block's parameters an update is for; their shapes do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.errors import PlanError
from cuvee.tensors.deltas import LowRank
from cuvee.tensors.sources import Source
from cuvee.tensors.updates import Added, Run

# Projections that lie one by one on disk, in the order in which they are stacked -> the stack's name in memory.
_STACKS = {("gate_proj", "up_proj"): "gate_up_proj", ("w1", "w3"): "gate_up_proj", ("down_proj",): "down_proj",
           ("w2",): "down_proj"}  # fmt: skip
# Families whose stacks are [experts, in, out]; it only matters where both are equal.
_TRANSPOSED_FAMILIES = {"gpt_oss", "llama4", "llama4_text"}


@dataclass(frozen=True)
class _Parameter:
    """A parameter in memory: its name, its shape, and the tensors on disk that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]

    @property
    def experts(self) -> int:
        """Matrices in the stack."""
        return self.shape[0] if len(self.shape) == 3 else 1


def expert_updates(
    block: str,
    path: str,
    updates: Sequence[AdapterModule],
    tensors: Mapping[str, Source],
    adapter: Adapter,
    model_type: str,
) -> dict[str, Source]:
    """The tensors of a block of experts as the adapter leaves them.

    Args:
        block: the block's name in the base.
        path: the block's path in memory, which patterns of the adapter's config speak of.
        updates: what the adapter has for the block.
        tensors: the base's.
        adapter: the adapter.
        model_type: the base's family.

    Raises:
        PlanError: if an update fits none of the block's parameters, or several.

    """
    wanted = {name.rsplit(".", 1)[-1] for name in adapter.config.target_parameters}
    parameters = [each for each in _parameters(block, tensors) if not wanted or each.name in wanted]
    found: dict[str, Source] = {}
    for update in updates:
        fitting = [each for each in parameters if _fits(update, each.shape) and each.tensors[0] not in found]
        if len(fitting) != 1:
            raise PlanError(
                f"adapter {adapter.name} does not fit its base: its update of {path} could be for "
                f"{len(fitting) or 'none'} of its parameters",
                expected="; ".join(f"{each.name} {list(each.shape)}" for each in parameters) or "stacked weights",
                found=", ".join(f"{name} {list(part.shape)}" for name, part in update.parts.items()),
                fix="use the base that it was trained on",
                tensor=block,
            )
        found |= _updated(update, fitting[0], path, tensors, adapter, model_type)
    return found


def expert_pieces(block: str, leaf: str, whole: Source, tensors: Mapping[str, Source]) -> dict[str, Source] | None:
    """A stack that an adapter brings whole, as the tensors of one expert each in which the base keeps it.

    None if the block has no such parameter, or not in pieces, or of another shape.
    """
    for parameter in _parameters(block, tensors):
        if parameter.name == leaf and parameter.tensors[0] != f"{block}.{leaf}" and parameter.shape == whole.shape:
            return _cut(whole, parameter, tensors)
    return None


def _parameters(block: str, tensors: Mapping[str, Source]) -> list[_Parameter]:
    inside = {name.removeprefix(block + "."): name for name in tensors if name.startswith(block + ".")}
    stacked = [
        _Parameter(rest, tensors[name].shape, (name,))
        for rest, name in inside.items()
        if "." not in rest and len(tensors[name].shape) in (2, 3)
    ]
    numbers = sorted({int(match[1]) for rest in inside if (match := re.match(r"(\d+)\.", rest))})
    for leaves, name in _STACKS.items():
        pieces = tuple(f"{block}.{i}.{leaf}.weight" for i in numbers for leaf in leaves)
        if pieces and all(piece in tensors for piece in pieces):
            rows = sum(tensors[piece].shape[0] for piece in pieces[: len(leaves)])
            stacked.append(_Parameter(name, (len(numbers), rows, tensors[pieces[0]].shape[1]), pieces))
    return stacked


def _fits(update: AdapterModule, shape: tuple[int, ...]) -> bool:
    a, b = update.a, update.b
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return False
    experts = shape[0] if len(shape) == 3 else 1
    whole = a.shape[0] % experts == 0 == b.shape[1] % experts
    return whole and sorted((b.shape[0], a.shape[1])) == sorted(shape[-2:])


def _updated(
    update: AdapterModule,
    parameter: _Parameter,
    path: str,
    tensors: Mapping[str, Source],
    adapter: Adapter,
    model_type: str,
) -> dict[str, Source]:
    a, b = update.a, update.b
    if a is None or b is None:  # they fit, so they are there
        return {}
    own = f"{path}.{parameter.name}"
    rank = adapter.config.rank_of(own)
    if a.shape[0] != rank * parameter.experts:
        raise PlanError(
            f"the rank of {own} in adapter {adapter.name} is not what its config says",
            expected=f"rank {rank} for each of {parameter.experts} experts",
            found=f"A of shape {list(a.shape)}",
            tensor=own,
        )
    shape = parameter.shape
    transposed = (b.shape[0], a.shape[1]) != shape[-2:]
    if len(shape) == 3 and shape[1] == shape[2]:
        transposed = model_type in _TRANSPOSED_FAMILIES
    delta = LowRank(b, a, adapter.config.scaling_of(own), shape, transposed, parameter.experts)
    if len(parameter.tensors) == 1:
        return {parameter.tensors[0]: Added(tensors[parameter.tensors[0]], delta)}
    return {name: Added(tensors[name], piece) for name, piece in _cut(delta, parameter, tensors).items()}


def _cut(stack: Source, parameter: _Parameter, tensors: Mapping[str, Source]) -> dict[str, Source]:
    """The stack's piece for each of the tensors on disk that it is made of."""
    found: dict[str, Source] = {}
    offset = 0
    for name in parameter.tensors:
        shape = tensors[name].shape
        found[name] = Run(stack, offset, shape)
        offset += math.prod(shape)
    return found
