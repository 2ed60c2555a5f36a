"""What is read of an op's sources: differences that are known as such, low-rank updates added up before they are made.

How it is read, and what is done with it, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

from cuvee.methods.spec import MethodSpec
from cuvee.planning.ops import TensorOp
from cuvee.tensors.deltas import LowRank, stacked
from cuvee.tensors.shared import change_of, low_rank_parts
from cuvee.tensors.sources import Source


@dataclass(frozen=True)
class Reads:
    """What is read for an op.

    Attributes:
        sources: in order; the base first where the method wants differences from it.
        changes: which of them (the base not counted) are differences from the base already.
        coefficients: of all (the base not counted), if their weighted sum is what the method gives.

    """

    sources: tuple[Source, ...]
    changes: frozenset[int] = frozenset()
    coefficients: tuple[float, ...] | None = None


def reads_of(op: TensorOp, spec: MethodSpec) -> Reads:
    """What is read for an op with this method."""
    if spec.wants != "deltas" or not op.has_base:
        return _summed_weights(op, spec) or Reads(op.sources)
    base, *others = op.sources
    changes = [change_of(source, base) for source in others]
    return _summed_deltas(op, spec) or Reads(
        (base, *(change or source for change, source in zip(changes, others, strict=True))),
        frozenset(i for i, change in enumerate(changes) if change is not None),
    )


def _coefficients(op: TensorOp, spec: MethodSpec) -> tuple[float, ...] | None:
    """Those of the op's inputs, if the method does nothing but add them up."""
    if spec.coefficients is None or op.parameters.get("match_norm", False):
        return None
    given = {name: op.parameters[name] for name in spec.coefficient_arguments}
    factor = float(op.parameters.get("lines", 1.0))  # type: ignore[arg-type]
    return tuple(each * factor for each in spec.coefficients(**given))


def _summed_weights(op: TensorOp, spec: MethodSpec) -> Reads | None:
    """Every tensor under updates once, with the sum of its coefficients, then all updates; None if they are few."""
    coefficients = _coefficients(op, spec)
    if coefficients is None:
        return None
    roots: dict[Source, list[float]] = {}
    updates: list[tuple[LowRank, float]] = []
    for source, factor in zip(op.sources, coefficients, strict=True):
        root, parts = low_rank_parts(source)
        roots.setdefault(root, []).append(factor)
        updates += [(part, factor) for part in parts]
    if len(updates) < 2:
        return None
    sums = stacked(updates)
    return Reads((*roots, *sums), frozenset(), (*map(fsum, roots.values()), *(1.0 for _ in sums)))


def _summed_deltas(op: TensorOp, spec: MethodSpec) -> Reads | None:
    """The base, what is no sum of updates of it, then all updates; None if they are few."""
    coefficients = _coefficients(op, spec)
    if coefficients is None:
        return None
    base, *others = op.sources
    plain: list[tuple[Source, float]] = []
    updates: list[tuple[LowRank, float]] = []
    for source, factor in zip(others, coefficients, strict=True):
        root, parts = low_rank_parts(source)
        if root == base:
            updates += [(part, factor) for part in parts]
        else:
            plain.append((source, factor))
    if len(updates) < 2:
        return None
    sums = stacked(updates)
    changes = [change_of(source, base) for source, _ in plain]
    known = [i for i, change in enumerate(changes) if change is not None]
    found = (change or source for change, (source, _) in zip(changes, plain, strict=True))
    return Reads(
        (base, *found, *sums),
        frozenset((*known, *range(len(plain), len(plain) + len(sums)))),
        (*(factor for _, factor in plain), *(1.0 for _ in sums)),
    )
