"""Adapters merged into one adapter, planned: for every module an op that takes all their A and B and gives one pair.

What the adapters' base model looks like is not known here, nor needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.errors import CheckpointError, PlanError
from cuvee.layout.layout import layout_of
from cuvee.lora.files import copied, derived
from cuvee.lora.peft_config import PREFIX, AdapterPlan, factor_names
from cuvee.lora.recipe import AdapterRecipe
from cuvee.numerics.combine import divisor
from cuvee.planning.ops import Output, ParameterValue, TensorOp
from cuvee.tensors.dtypes import promote
from cuvee.tensors.sources import Stored


@dataclass(frozen=True)
class AdapterMerge:
    """The ops of a merge of adapters, and what the result holds."""

    ops: tuple[TensorOp, ...]
    config: AdapterPlan
    warnings: tuple[str, ...]


def plan_adapter_merge(recipe: AdapterRecipe, adapters: Sequence[Adapter]) -> AdapterMerge:
    """Every tensor of the merged adapter, with what it comes from.

    Raises:
        CuveeError: if the adapters do not fit together, or hold what cannot be merged without their base.

    """
    for adapter in adapters:
        _check_kind(adapter)
    names = list(dict.fromkeys(path for adapter in adapters for path in adapter.modules))
    layout = layout_of(f"{name}.weight" for name in names)
    ops: list[TensorOp] = []
    ranks: dict[str, int] = {}
    for name in names:
        op = _module_op(recipe, adapters, name, layout.position(f"{name}.weight"))
        ranks[name] = op.shape[0]
        ops.append(op)
    whole = dict.fromkeys(name for adapter in adapters for name in adapter.whole)
    ops += [_whole_op(adapters, name) for name in whole]
    return AdapterMerge(tuple(ops), _config(adapters, ranks, list(whole)), _warnings(recipe, adapters))


def _module_op(recipe: AdapterRecipe, adapters: Sequence[Adapter], name: str, t: float) -> TensorOp:
    """The op of one module."""
    found = [adapter.modules.get(name) for adapter in adapters]
    there = [(adapter, module) for adapter, module in zip(adapters, found, strict=True) if module is not None]
    pairs = [_factors(adapter, module) for adapter, module in there]
    _check_shapes(name, [adapter for adapter, _ in there], pairs)
    down, up = pairs[0]
    fan_in, fan_out = math.prod(down.shape[1:]), math.prod(up.shape) // up.shape[1]
    total = sum(a.shape[0] for a, _ in pairs)
    scalings = tuple(module.scaling if module else 0.0 for module in found)
    parameters = recipe.parameters(name, t)
    _check_parameters(recipe, parameters)
    chosen: dict[str, ParameterValue] = {"present": tuple(module is not None for module in found)}
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
            reach = _common_rank(name, adapters, found)
    rank = min(recipe.rank or reach, reach)
    if recipe.space == "factors" and not recipe.is_sum and rank != reach:
        raise PlanError(
            "in the space of factors the rank stays what it is", found=f"rank {recipe.rank}", fix="leave rank out"
        )
    outputs = _outputs(recipe, there[0][1], pairs, rank)
    sources = [source for pair in pairs for source in pair]
    owners = [index for index, module in enumerate(found) if module is not None for _ in "AB"]
    return derived(derivation, sources, outputs, {"rank": rank, **chosen}, owners)


def _check_parameters(recipe: AdapterRecipe, parameters: Mapping[str, object]) -> None:
    """Raises a PlanError for what looks at the whole model: adapters are merged one module by itself."""
    over = recipe.spec.over
    if over is not None and parameters[over] == "model":
        raise PlanError(
            f"{over} of {recipe.method} is model, and adapters are merged one module at a time",
            expected="a method that looks at one tensor by itself",
            fix=f"set {over}: tensor, or merge base+adapter models with `cuvee merge`",
        )


def _outputs(
    recipe: AdapterRecipe, module: AdapterModule, pairs: Sequence[tuple[Stored, Stored]], rank: int
) -> tuple[Output, Output]:
    down, up = pairs[0]
    dtype = recipe.recipe.out_dtype or recipe.recipe.dtype or promote(tuple(s.dtype for pair in pairs for s in pair))
    names = factor_names(module.path, embedding=module.is_embedding)
    return (
        Output(names[0], (rank, *down.shape[1:]), dtype),
        Output(names[1], (up.shape[0], rank, *up.shape[2:]), dtype),
    )


def _whole_op(adapters: Sequence[Adapter], name: str) -> TensorOp:
    """The op of a tensor that adapters hold whole: all must hold the same, for without a base there is no change."""
    lacking = next((adapter for adapter in adapters if name not in adapter.whole), None)
    if lacking is not None:
        holding = next(adapter for adapter in adapters if name in adapter.whole)
        raise PlanError(
            f"{holding.name} holds {name!r} whole, and {lacking.name} does not",
            expected="adapters that hold the same tensors whole (modules_to_save, biases)",
            fix="merge base+adapter models with `cuvee merge`, and extract an adapter from the result",
            tensor=name,
        )
    sources = [adapter.whole[name] for adapter in adapters]
    if len({source.shape for source in sources}) > 1:
        raise _other_base(name, adapters, [source.shape for source in sources])
    module, _, leaf = name.rpartition(".")
    biased = leaf == "bias" and module in {path for adapter in adapters for path in adapter.modules}
    op = copied(PREFIX + (f"{module}.base_layer.bias" if biased else name), sources[0], 0)
    return replace(op, sources=tuple(sources), models=tuple(range(len(sources))))


def _factors(adapter: Adapter, module: AdapterModule) -> tuple[Stored, Stored]:
    """A and B, if the module's update is nothing else."""
    others = [part for part in module.parts if part not in _FACTORS]
    if others or module.a is None or module.b is None:
        raise PlanError(
            f"{adapter.name} holds more than A and B of {module.path}: {', '.join(others) or 'no factors'}",
            fix="merge base+adapter models with `cuvee merge`, and extract an adapter from the result",
            tensor=module.path,
        )
    return module.a, module.b


_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def _check_kind(adapter: Adapter) -> None:
    config = adapter.config
    kind = "DoRA" if config.dora else config.kind
    if kind != "LORA" or config.target_parameters or config.token_indices:
        what = kind if kind != "LORA" else "LoRA of single parameters or tokens"
        raise CheckpointError(
            f"{adapter.name} is of type {what}; only LoRA adapters of modules are merged with each other",
            fix="merge base+adapter models with `cuvee merge`, and extract an adapter from the result",
            checkpoint=adapter.name,
        )


def _check_shapes(name: str, adapters: Sequence[Adapter], pairs: Sequence[tuple[Stored, Stored]]) -> None:
    """Raises a PlanError unless all update a matrix of one shape."""
    shapes = [(up.shape[0], *up.shape[2:], *down.shape[1:]) for down, up in pairs]
    if len(set(shapes)) > 1:
        raise _other_base(name, adapters, shapes)


def _other_base(name: str, adapters: Sequence[Adapter], shapes: Sequence[tuple[int, ...]]) -> PlanError:
    other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
    return PlanError(
        f"the adapters are for models of different sizes: {name!r} differs",
        expected=f"{list(shapes[0])} as in {adapters[0].name}",
        found=f"{list(shapes[other])} in {adapters[other].name}",
        fix="merge adapters of one base model",
        tensor=name,
    )


def _common_rank(name: str, adapters: Sequence[Adapter], found: Sequence[AdapterModule | None]) -> int:
    """The rank of all, which merging A and B by themselves needs."""
    ranks = {adapter.name: module.rank for adapter, module in zip(adapters, found, strict=True) if module}
    if len(set(ranks.values())) > 1:
        raise PlanError(
            f"A and B of {name!r} cannot be merged by themselves: their ranks differ",
            found=", ".join(f"{rank} in {adapter}" for adapter, rank in ranks.items()),
            fix="use space: core or knots, which take any ranks",
            tensor=name,
        )
    return next(iter(ranks.values()))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int], whole: Sequence[str]) -> AdapterPlan:
    """The merged adapter's settings; modules are named in full where the adapters' own lists do not tell enough."""
    raws = [adapter.config.raw for adapter in adapters]
    lists = [raw.get("target_modules") for raw in raws]
    plain = all(isinstance(each, list) for each in lists) and not any(raw.get("layers_to_transform") for raw in raws)
    saved = dict.fromkeys(_saved(raws)) if whole else {}
    biases = any(name.endswith(".bias") and name[:-5] in ranks for name in whole)
    return AdapterPlan(
        ranks=ranks,
        whole=tuple(saved),
        modules=(),
        base=adapters[0].config.base_model,
        revision=adapters[0].config.revision,
        biases=biases or any(raw.get("bias") not in (None, "none") for raw in raws),
        fan_in_fan_out=any(adapter.config.fan_in_fan_out for adapter in adapters),
        tied=any(raw.get("ensure_weight_tying") for raw in raws),
        task=next((raw["task_type"] for raw in raws if raw.get("task_type")), None),
        targets=tuple(dict.fromkeys(name for each in lists for name in each)) if plain else tuple(ranks),  # type: ignore[union-attr]
    )


def _saved(raws: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for raw in raws:
        names = raw.get("modules_to_save")
        if isinstance(names, list):
            yield from map(str, names)


def _warnings(recipe: AdapterRecipe, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    bases = dict.fromkeys(adapter.config.base_model for adapter in adapters if adapter.config.base_model)
    if len(bases) < 2:
        return recipe.warnings
    return (*recipe.warnings, f"the adapters name different base models: {', '.join(bases)}")
