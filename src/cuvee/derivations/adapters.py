"""Several adapters' updates of one module merged into one update, by any method that acts on changes.

The sources are A and B of every adapter that has the module, in order. An adapter without it takes part with an update
of zero, just as its merged model would have the base's weights there. Stacked experts are merged one by one, as if they
lay so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cuvee.derivations.experts import joined, parted
from cuvee.derivations.registry import Array, Inputs, derivation
from cuvee.methods.registry import get_method
from cuvee.methods.spec import MethodSpec
from cuvee.numerics.block import Block
from cuvee.numerics.low_rank import balanced
from cuvee.numerics.random import derive_key
from cuvee.numerics.scan import Scan
from cuvee.numerics.subspaces import Shared, Update, core_space, knots, stacked, svd_of


@derivation("stack")
def stack(
    inputs: Inputs, *, present: tuple[bool, ...], factors: tuple[float, ...], rank: int, weight: tuple[float, ...] = (),
    scalings: tuple[float, ...] = (), match_norm: bool = False, experts: int = 1,
) -> tuple[Array, Array]:  # fmt: skip
    """A and B of the weighted sum of updates: exact, their ranks added up; or its best approximation of a lower rank.

    Args:
        inputs: A and B of each adapter present.
        present: for each adapter whether it has the module.
        factors: for each adapter its weight times its scaling.
        rank: of the result; a lower one than the sum cuts singular values off.
        weight: the adapters' weights by themselves, for `match_norm`.
        scalings: their scalings, for `match_norm`.
        match_norm: the stage (see `methods.stages`).
        experts: how many matrices A and B are of.

    """

    def of_one(updates: Mapping[int, Update]) -> tuple[Array, Array]:
        total = stacked(list(updates.values()), [factors[index] for index in updates])
        if match_norm:
            norms = {index: abs(scalings[index]) * update.norm for index, update in updates.items()}
            total = total.times(_norm_ratio(total, norms, weight))
        return _cut(total, rank)

    return _shaped(inputs, [of_one(updates) for updates in _updates(inputs, present, (1.0,) * len(present), experts)])


@derivation("merge_updates")
def merge_updates(
    inputs: Inputs, *, present: tuple[bool, ...], scalings: tuple[float, ...], rank: int, space: str, method: str,
    lines: float = 1.0, match_norm: bool = False, experts: int = 1, **parameters: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """A and B of what `method` makes of the updates in a common space.

    Args:
        inputs: A and B of each adapter present.
        present: for each adapter whether it has the module.
        scalings: for each adapter the factor before B A.
        rank: of the result.
        space: `core` or `knots` (see `numerics.subspaces`), or `factors` to merge A and B each by itself, as PEFT's
            `add_weighted_adapter` does: the product then has cross terms between adapters.
        method: the name of a merge method.
        lines: the stage (see `methods.stages`): a factor of the merged update.
        match_norm: the stage: the merged update gets the weighted mean of the updates' norms, before it is cut.
        experts: how many matrices A and B are of.
        parameters: the method's, for this module.

    """
    spec = get_method(method)
    own = spec.parameters.get("weight")
    weight = parameters["weight"] if own is not None and own.per_model else (1.0,) * len(present)

    def of_one(number: int, updates: Mapping[int, Update]) -> tuple[Array, Array]:
        key = inputs.key if experts == 1 else derive_key(inputs.key, number)
        made = _in_space(spec, updates, len(present), space, parameters, key)
        if match_norm:
            made = made.times(_norm_ratio(made, {index: update.norm for index, update in updates.items()}, weight))
        return _cut(made.times(lines), rank)

    return _shaped(inputs, [of_one(*each) for each in enumerate(_updates(inputs, present, scalings, experts))])


def _in_space(
    spec: MethodSpec, updates: Mapping[int, Update], count: int, space: str, parameters: Mapping[str, Any], key: int
) -> Update:
    """What the method makes of the updates of `count` adapters in a space."""
    if space == "factors":
        return _by_factors(spec, updates, count, parameters, key)
    shared = (core_space if space == "core" else knots)(list(updates.values()))
    zero = np.zeros_like(shared.coordinates[0])
    own = dict(zip(updates, shared.coordinates, strict=True))
    arrays = tuple(own.get(index, zero) for index in range(count))
    return _back(shared, merged(spec, arrays, parameters, key))


def _norm_ratio(made: Update, norms: Mapping[int, float], weight: Sequence[float]) -> float:
    """The weighted mean of the updates' norms over that of what was made of them; an absent update has none.

    As `methods.stages.norm_ratio` has it: weights count by their size, and equally if all are zero.
    """
    shares = [abs(each) for each in weight] if any(weight) else [1.0] * len(weight)
    mean = math.fsum(shares[index] * norm for index, norm in norms.items()) / math.fsum(shares)
    return mean / made.norm if made.norm > 0 else 1.0


def merged(spec: MethodSpec, arrays: tuple[Array, ...], parameters: Mapping[str, Any], key: int) -> Array:
    """What a method makes of arrays in memory that are differences from a base of zero."""
    shape = arrays[0].shape
    flat = [array.reshape(-1) if spec.scope == "elements" else array for array in arrays]
    size = math.prod(shape)
    align = 1 if spec.scope == "elements" else shape[-1] if spec.scope == "rows" else size

    def read(start: int, stop: int) -> Block:
        pieces = [array.reshape(-1)[start:stop] for array in arrays]
        if spec.scope != "elements":
            pieces = [piece.reshape(-1, shape[-1]) for piece in pieces]
        return Block(tuple(piece.copy() for piece in pieces), start, key)

    prepared: tuple[Any, ...] = ()
    if spec.prepare is not None:
        scan = Scan(shape, len(arrays), ((0, size),), read, map, align)
        prepared = (spec.prepare(scan, **{name: parameters[name] for name in spec.prepare_arguments}),)
    result: Array = spec.apply(Block(tuple(array.copy() for array in flat), 0, key), *prepared, **parameters)
    return np.reshape(result, shape)


def _by_factors(
    spec: MethodSpec, updates: Mapping[int, Update], count: int, parameters: Mapping[str, Any], key: int
) -> Update:
    """A and B merged apart; each takes the root of every weight, so that their product takes the weight once."""
    weights = parameters.get("weight")
    roots = dict(parameters)
    signs = dict(parameters)
    if weights is not None:
        roots["weight"] = tuple(math.sqrt(abs(weight)) for weight in weights)
        signs["weight"] = tuple(math.copysign(math.sqrt(abs(weight)), weight) for weight in weights)
    first = next(iter(updates.values()))
    nothing = Update(np.zeros_like(first.up), np.zeros_like(first.down))
    every = [updates.get(index, nothing) for index in range(count)]
    down = merged(spec, tuple(update.down for update in every), roots, key)
    up = merged(spec, tuple(update.up for update in every), signs, key)
    return Update(up, down)


def _updates(
    inputs: Inputs, present: Sequence[bool], scalings: Sequence[float], experts: int
) -> list[dict[int, Update]]:
    """For each expert, by adapter, A and B as matrices, each with the root of the scaling."""
    found: list[dict[int, Update]] = [{} for _ in range(experts)]
    sources = iter(inputs.sources)
    for index, there in enumerate(present):
        if not there:
            continue
        down, up = next(sources).whole(), next(sources).whole()
        rank = down.shape[0]
        root = math.sqrt(abs(scalings[index]))
        signed = math.copysign(root, scalings[index])
        down, up = down.reshape(rank, -1), up.reshape(-1, rank)
        if scalings[index] != 1.0:
            down, up = down * root, up * signed
        for updates, (own_down, own_up) in zip(found, parted(down, up, experts), strict=True):
            updates[index] = Update(own_up, own_down)
    return found


def _shaped(inputs: Inputs, parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """A and B of all experts in the form of the first adapter's, which of convolutions has more dimensions than two."""
    down, up = joined(parts)
    return down.reshape(-1, *inputs[0].shape[1:]), up.reshape(*up.shape, *inputs[1].shape[2:])


def _back(shared: Shared, coordinates: Array) -> Update:
    return shared.back(coordinates.astype(shared.left.dtype, copy=False))


def _cut(update: Update, rank: int) -> tuple[Array, Array]:
    """A and B of the update at a rank: as they are if it is theirs, else the best of that rank."""
    if update.down.shape[0] == rank:
        return update.down, update.up
    return balanced(svd_of(update, rank), distribute=True)
