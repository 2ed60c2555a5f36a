"""Adapters merged into one adapter, planned: for every module an op that takes all their A and B and gives one pair.

The adapters' base model is only known where tensors that they hold whole are merged as changes from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter
from cuvee.errors import CheckpointError, PlanError
from cuvee.layout.layout import Layout, layout_of
from cuvee.layout.names import acts_before_layers
from cuvee.lora.base import OnBase
from cuvee.lora.files import derived
from cuvee.lora.merged_config import merged_config
from cuvee.lora.peft_config import AdapterPlan, factor_names
from cuvee.lora.recipe import AdapterRecipe
from cuvee.lora.updates import WAY_OUT, Update, holder_of, in_order, updates_of
from cuvee.lora.whole import Whole, whole_ops
from cuvee.numerics.combine import divisor
from cuvee.planning.ops import Output, ParameterValue, TensorOp
from cuvee.tensors.dtypes import promote


@dataclass(frozen=True)
class AdapterMerge:
    """The ops of a merge of adapters, and what the result holds.

    Attributes:
        ops: one for each update, then one for each tensor held whole.
        config: the merged adapter's settings.
        warnings: what the user should know.
        whole: how many tensors are held whole.
        base: what the base is that some of these are merged as changes from, and how many; None if none are.
        workers: bytes that worker processes took at most, once it has run.

    """

    ops: tuple[TensorOp, ...]
    config: AdapterPlan
    warnings: tuple[str, ...]
    whole: int = 0
    base: tuple[str, int] | None = None
    workers: int = 0


def plan_adapter_merge(
    recipe: AdapterRecipe,
    adapters: Sequence[Adapter],
    wholes: Sequence[Whole] = (),
    on_base: OnBase | None = None,
    differing: Collection[str] = (),
) -> AdapterMerge:
    """Every tensor of the merged adapter, with what it comes from.

    Args:
        recipe: how to merge.
        adapters: opened, in the recipe's order.
        wholes: the tensors that they hold whole.
        on_base: the base, with each adapter on it, if any of these differ.
        differing: those that do, by name.

    Raises:
        CuveeError: if the adapters do not fit together, or hold what cannot be merged.

    """
    for adapter in adapters:
        check_kind(adapter)
    found = [updates_of(adapter) for adapter in adapters]
    # What one adapter holds whole and another as factors is merged whole.
    every = {name: update for updates in found for name, update in updates.items() if update.weight not in differing}
    places = _places([*(update.weight for update in every.values()), *(whole.name for whole in wholes)])
    holders = _holders(every.values())
    ops: list[TensorOp] = []
    ranks: dict[str, int] = {}
    for name, update in every.items():
        op = _update_op(
            recipe, adapters, [updates.get(name) for updates in found], places[update.weight], holders[name]
        )
        ranks[name] = op.shape[0] // update.experts
        ops.append(op)
    kept = {name: places[name] for name in differing}
    factored = {update.module for update in every.values()}
    ops += whole_ops(recipe, adapters, wholes, on_base, kept, factored)
    replaced = any(update.weight in differing for updates in found for update in updates.values())
    config = merged_config(recipe, adapters, every, ranks, wholes, replaced=replaced, differing=differing)
    base = (on_base.base.identity, len(kept)) if on_base is not None else None
    return AdapterMerge(tuple(ops), config, _warnings(recipe, adapters), len(wholes), base)


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Of each tensor its layer's place among all layers, 0 to 1, and the same with 1 for what comes after them."""
    layout = layout_of(names)
    return {name: (layout.position(name), _depth(layout, name)) for name in names}


def _depth(layout: Layout, name: str) -> float:
    outside = layout.places[name].stack is None
    return 1.0 if outside and not acts_before_layers(name) else layout.position(name)


def _holders(updates: Collection[Update]) -> dict[str, str]:
    """For each update the path under which PEFT looks for its factors.

    Raises:
        PlanError: if the adapters update parameters of one module whose order PEFT does not tell.

    """
    leaves: dict[str, list[str]] = {}
    for update in updates:
        leaves.setdefault(update.module, []).append(update.name.rsplit(".", 1)[-1] if update.parameter else "")
    ordered = {module: in_order(names) for module, names in leaves.items()}
    if bad := next((module for module, names in ordered.items() if names is None), None):
        raise PlanError(
            f"the adapters update {bad} in ways that one adapter cannot hold together",
            expected="the module, one parameter of it, or gate_up_proj and down_proj",
            found=", ".join(name or "the module" for name in leaves[bad]),
            fix=WAY_OUT,
            tensor=bad,
        )
    return {update.name: holder_of(update, ordered[update.module] or ()) for update in updates}


def _update_op(
    recipe: AdapterRecipe,
    adapters: Sequence[Adapter],
    found: Sequence[Update | None],
    place: tuple[float, float],
    holder: str,
) -> TensorOp:
    """The op that merges all adapters' updates of one weight."""
    there = [(adapter, update) for adapter, update in zip(adapters, found, strict=True) if update is not None]
    updates = [update for _, update in there]
    first = updates[0]
    _check_sides([adapter for adapter, _ in there], updates)
    fan_in, fan_out = math.prod(first.a.shape[1:]), math.prod(first.b.shape) // first.b.shape[1]
    total = sum(update.rank for update in updates)
    scalings = tuple(update.scaling if update else 0.0 for update in found)
    parameters = recipe.parameters(first.name, *place)
    chosen: dict[str, ParameterValue] = {"present": tuple(update is not None for update in found)}
    if first.experts > 1:
        chosen["experts"] = first.experts
    # Beyond the ranks' sum and the sides of the matrix there is nothing; a plain sum keeps its A as they are.
    reach = total if recipe.method == "concat" else min(total, fan_in, fan_out)
    if recipe.is_sum:
        derivation = "stack"
        weights = parameters["weight"]
        strength = parameters["lambda_"] * parameters.get("lines", 1.0)
        strength /= divisor(weights) if parameters["normalize"] else 1.0
        chosen["factors"] = tuple(w * s * strength for w, s in zip(weights, scalings, strict=True))
        if parameters.get("match_norm"):
            chosen |= {"weight": weights, "scalings": scalings, "match_norm": True}
    else:
        derivation = "merge_updates"
        chosen |= {"scalings": scalings, "space": recipe.space, "method": recipe.recipe.method, **parameters}
        if recipe.space == "factors":
            reach = _common_rank(first.name, adapters, found)
    rank = min(recipe.rank or reach, reach)
    if recipe.space == "factors" and not recipe.is_sum and rank != reach:
        raise PlanError(
            "in the space of factors the rank stays what it is", found=f"rank {recipe.rank}", fix="leave rank out"
        )
    outputs = _outputs(recipe, updates, holder, rank)
    sources = [source for update in updates for source in (update.a, update.b)]
    owners = [index for index, update in enumerate(found) if update is not None for _ in "AB"]
    return derived(derivation, sources, outputs, {"rank": rank, **chosen}, owners)


def _outputs(recipe: AdapterRecipe, updates: Sequence[Update], holder: str, rank: int) -> tuple[Output, Output]:
    """A and B of the merged update."""
    first = updates[0]
    stored = tuple(source.dtype for update in updates for source in (update.a, update.b))
    dtype = recipe.recipe.out_dtype or recipe.recipe.dtype or promote(stored)
    names = factor_names(holder, embedding=first.is_embedding)
    ranks = rank * first.experts
    return (
        Output(names[0], (ranks, *first.a.shape[1:]), dtype),
        Output(names[1], (first.b.shape[0], ranks, *first.b.shape[2:]), dtype),
    )


def check_kind(adapter: Adapter) -> None:
    """Raises a CheckpointError unless the adapter is of the kind that is merged here."""
    config = adapter.config
    kind = "DoRA" if config.dora else config.kind
    if kind != "LORA" or config.token_indices:
        what = kind if kind != "LORA" else "LoRA with trainable tokens"
        raise CheckpointError(
            f"{adapter.name} is of type {what}; only plain LoRA adapters are merged with each other",
            fix=WAY_OUT,
            checkpoint=adapter.name,
        )


def _check_sides(adapters: Sequence[Adapter], updates: Sequence[Update]) -> None:
    """Raises a PlanError unless all update a weight of one shape."""
    sides = [update.sides for update in updates]
    other = next((i for i, each in enumerate(sides) if each != sides[0]), None)
    if other is not None:
        raise PlanError(
            f"the adapters are for models of different sizes: {updates[0].name!r} differs",
            expected=f"{list(sides[0])} as in {adapters[0].name}",
            found=f"{list(sides[other])} in {adapters[other].name}",
            fix="merge adapters of one base model",
            tensor=updates[0].name,
        )


def _common_rank(name: str, adapters: Sequence[Adapter], found: Sequence[Update | None]) -> int:
    """The rank of all, which merging A and B by themselves needs."""
    ranks = {adapter.name: update.rank for adapter, update in zip(adapters, found, strict=True) if update}
    if len(set(ranks.values())) > 1:
        raise PlanError(
            f"A and B of {name!r} cannot be merged by themselves: their ranks differ",
            found=", ".join(f"{rank} in {adapter}" for adapter, rank in ranks.items()),
            fix="use space: core or knots, which take any ranks",
            tensor=name,
        )
    return next(iter(ranks.values()))


def _warnings(recipe: AdapterRecipe, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    bases = dict.fromkeys(adapter.config.base_model for adapter in adapters if adapter.config.base_model)
    if len(bases) < 2 or recipe.base is not None:
        return recipe.warnings
    return (*recipe.warnings, f"the adapters name different base models: {', '.join(bases)}")
