"""Stages: what may follow any method that merges deltas. Each is one factor on the merged delta of a tensor.

Their parameters are added to every such method when it is registered, so recipes, help and pages know them like the
method's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from cuvee.methods.spec import MethodSpec, Parameter
from cuvee.numerics.block import Array, Block
from cuvee.numerics.scan import Scan

LINES = Parameter(
    "lines", "lines", float, per_model=False, default=1.0, by_depth=True, stage=True,
    help="Factor of the merged task vector. `[a, b]` scales layer by layer on a straight line, from a in the first "
    "layer (and the embeddings) to b in the last one (and what follows it), as LiNeS does (arXiv:2410.17146).",
)  # fmt: skip
MATCH_NORM = Parameter(
    "match_norm", "match_norm", bool, per_model=False, default=False, stage=True,
    help="Scale each tensor's merged task vector to the weighted mean of the norms of the models' (arXiv:2512.19320); "
    "`lambda` then has no effect on its size.",
)  # fmt: skip
STAGES: Mapping[str, Parameter] = MappingProxyType({stage.name: stage for stage in (LINES, MATCH_NORM)})


def with_stages(spec: MethodSpec) -> MethodSpec:
    """The method with the stages' parameters beside its own, if there is a base that merged deltas are added to."""
    if spec.wants != "deltas" or spec.base != "required":
        return spec
    return replace(spec, parameters=MappingProxyType({**spec.parameters, **STAGES}))


def merger(
    spec: MethodSpec, scan: Callable[[], Scan], prepared: tuple[Any, ...], arguments: Mapping[str, Any]
) -> Callable[[Block], Array]:
    """What makes of each block of a tensor its merged values: the method, then its stages.

    Args:
        spec: the method.
        scan: gives the tensor, ready to be scanned; only asked where a stage needs it.
        prepared: what the method's `prepare` returned, if it has one.
        arguments: of the method and of the stages.
    """
    own = {name: value for name, value in arguments.items() if name not in STAGES}
    method = partial(_apply, spec.apply, prepared, own)
    factor = float(arguments.get("lines", 1.0))
    if arguments.get("match_norm", False):
        weight = own["weight"] if "weight" in spec.parameters and spec.parameters["weight"].per_model else None
        factor *= norm_ratio(scan(), method, weight)
    return method if factor == 1.0 else lambda block: method(block) * factor


def norm_ratio(scan: Scan, merge: Callable[[Block], Array], weight: tuple[float, ...] | None) -> float:
    """The weighted mean of the deltas' norms over the norm of what `merge` makes of them; 1 if that is nothing.

    Weights count by their size, and equally if they are None or all zero: a negative weight turns a task vector round
    and makes it no shorter.
    """
    squares = scan.squares(lambda block: [merge(block), *block])
    merged, norms = float(np.sqrt(squares[0])), np.sqrt(squares[1:])
    shares = np.abs(weight) if weight is not None and any(weight) else np.ones(len(norms))
    return float(shares @ norms / shares.sum()) / merged if merged > 0 else 1.0


def _apply(method: Callable[..., Array], prepared: tuple[Any, ...], arguments: dict[str, Any], block: Block) -> Array:
    return method(block, *prepared, **arguments)
