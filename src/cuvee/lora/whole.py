"""Tensors that adapters hold whole, merged: taken as they are where all hold the same, else as changes from the base's.

A change is what the dense merge of the models would see: the adapter's tensor less the base's, and none where an
adapter lacks the tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuvee.adapters.adapter import Adapter
from cuvee.errors import PlanError
from cuvee.lora.base import OnBase
from cuvee.lora.files import copied, derived
from cuvee.lora.peft_config import PREFIX
from cuvee.lora.recipe import AdapterRecipe
from cuvee.lora.updates import WAY_OUT
from cuvee.numerics.row_blocks import Array
from cuvee.planning.ops import Output, TensorOp
from cuvee.tensors.dtypes import is_float, promote
from cuvee.tensors.sources import Stored


@dataclass(frozen=True)
class Whole:
    """A tensor that an adapter holds whole: where it lies in each adapter, None in those that lack it."""

    name: str
    held: tuple[Stored | None, ...]

    @property
    def everywhere(self) -> tuple[Stored, ...] | None:
        """Where it lies, if all adapters hold it."""
        found = tuple(each for each in self.held if each is not None)
        return found if len(found) == len(self.held) else None

    @property
    def comparable(self) -> tuple[Stored, ...]:
        """Where it lies, if all adapters hold numbers of one shape; else nothing."""
        found = self.everywhere or ()
        return found if len({each.shape for each in found}) == 1 and all(is_float(e.dtype) for e in found) else ()


def held_whole(adapters: Sequence[Adapter]) -> tuple[Whole, ...]:
    """All tensors that an adapter holds whole."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter.whole)
    return tuple(Whole(name, tuple(adapter.whole.get(name) for adapter in adapters)) for name in names)


def comparisons(wholes: Sequence[Whole]) -> list[TensorOp]:
    """One op for each adapter after the first and each tensor that all hold: the squared norm of their difference."""
    return [
        derived("change", (whole.comparable[0], other), (Output(_pair(whole, i), (1,), "F64"),), {}, (0, i))
        for whole in wholes
        for i, other in enumerate(whole.comparable[1:], 1)
    ]


def differing(wholes: Sequence[Whole], squares: Mapping[str, Array]) -> tuple[str, ...]:
    """The names of those that are not the same in all adapters, by the squared norms that were asked for.

    What is no number anywhere cannot be told so; the engine then compares the bytes.
    """
    return tuple(
        whole.name
        for whole in wholes
        if (not whole.comparable and _is_number(whole))
        or any(float(squares[_pair(whole, i)][0]) > 0 for i in range(1, len(whole.comparable)))
    )


def whole_ops(
    recipe: AdapterRecipe,
    adapters: Sequence[Adapter],
    wholes: Sequence[Whole],
    on_base: OnBase | None,
    places: Mapping[str, tuple[float, float]],
    factored: Collection[str],
) -> list[TensorOp]:
    """The ops of tensors that adapters hold whole.

    Args:
        recipe: says how they are merged.
        adapters: opened, in order.
        wholes: the tensors.
        on_base: the base, with each adapter on it; None if all tensors are to be taken as they are.
        places: of each tensor that differs, where it acts in the model (see `AdapterRecipe.parameters`).
        factored: paths of modules that the merged adapter holds as factors.

    """
    ops = []
    for whole in wholes:
        module, _, leaf = whole.name.rpartition(".")
        name = f"{PREFIX}{module}.base_layer.{leaf}" if module in factored else PREFIX + whole.name
        if whole.name in places and on_base is not None:
            ops.append(_merged(recipe, whole.name, name, on_base, places[whole.name]))
        else:
            ops.append(_same(adapters, whole, name))
    return ops


def _merged(recipe: AdapterRecipe, name: str, output: str, on_base: OnBase, place: tuple[float, float]) -> TensorOp:
    """The op that adds to the base's tensor what the method makes of the changes."""
    sources = on_base.sources(name)
    if sources is None:
        raise PlanError(
            f"{name!r} is held whole and is not the same in all adapters, and {on_base.base.name} has no such tensor",
            expected="a tensor of the base, which the adapters change",
            fix="merge adapters with one and the same head for a task, or none",
            tensor=name,
        )
    method, parameters = _as_changes(recipe, recipe.parameters(name, *place))
    count = len(on_base.tuned)
    dtypes = tuple(source.dtype for source in sources)
    return TensorOp(
        name=output,
        shape=sources[0].shape,
        dtype=recipe.recipe.out_dtype or recipe.recipe.dtype or promote(dtypes),
        shard=0,
        offset=0,
        sources=sources,
        models=(count, *range(count)),
        has_base=True,
        method=method,
        parameters=parameters,
    )


def _as_changes(recipe: AdapterRecipe, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method that acts on changes as the recipe's does, and its parameters: a mean of weights is one of changes."""
    if recipe.recipe.method != "linear":
        return recipe.recipe.method, parameters
    return "task_arithmetic", {**parameters, "lambda_": 1.0, "int8_mask": False}


def _same(adapters: Sequence[Adapter], whole: Whole, output: str) -> TensorOp:
    """The op that takes a tensor as it is; unless they have been compared, all must hold the same bytes."""
    sources = whole.everywhere
    if sources is None or len({source.shape for source in sources}) > 1:
        holding = next(adapter for adapter in adapters if whole.name in adapter.whole)
        raise PlanError(
            f"{holding.name} holds {whole.name!r} whole, in values that cannot be merged, and not all adapters do",
            expected="the same in all adapters",
            fix=WAY_OUT,
            tensor=whole.name,
        )
    op = copied(output, sources[0], 0)
    return replace(op, sources=sources, models=tuple(range(len(sources))))


def _is_number(whole: Whole) -> bool:
    return all(is_float(each.dtype) for each in whole.held if each is not None)


def _pair(whole: Whole, index: int) -> str:
    """The name of the comparison of the first adapter's tensor with another's."""
    return f"{whole.name} {index}"
