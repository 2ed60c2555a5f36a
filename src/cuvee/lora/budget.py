"""What decompositions take in memory, and how many of them fit the budget at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cuvee.derivations.factors import STREAMED_ELEMENTS
from cuvee.derivations.registry import HELD_ELEMENTS
from cuvee.engine.execute import EngineSettings
from cuvee.errors import PlanError
from cuvee.lora.options import ExtractOptions
from cuvee.lora.pairs import Pair
from cuvee.numerics.low_rank import GRAM_SIDE, width_of

_EXACT_COPIES = 3  # of the Gram matrix in float64, while its eigenvectors are sought
_FACTOR_COPIES = 6  # of the two factors in float32, while they are iterated, rounded and written


def within_budget(
    settings: EngineSettings, pairs: Sequence[Pair], limits: Mapping[str, int], options: ExtractOptions
) -> EngineSettings:
    """The settings with as many threads as decompositions fit the budget side by side.

    Raises:
        PlanError: if the largest does not fit by itself.

    """
    needs = {pair.name: _needed(pair, limits[pair.name], options) for pair in pairs if pair.name in limits}
    largest = max(needs, key=needs.__getitem__, default=None)
    if largest is None:
        return settings
    if needs[largest] > settings.memory:
        raise PlanError(
            f"decomposing {largest!r} does not fit the memory budget",
            expected=f"at least --memory {-(-needs[largest] >> 20)}MiB",
            found=f"{settings.memory >> 20} MiB",
            fix="raise --memory, or bound the ranks with --max-rank and leave --exact out",
            tensor=largest,
        )
    fitting = settings.memory // needs[largest]
    return replace(settings, threads=max(min(settings.workers, fitting), settings.processes, 1))


def _needed(pair: Pair, rank: int, options: ExtractOptions) -> int:
    """Bytes that the decomposition of one matrix takes at its height."""
    rows, columns = pair.sides
    short, size = min(rows, columns), rows * columns
    matrix = 4 * ((size if size <= HELD_ELEMENTS else 0) + 3 * min(size, STREAMED_ELEMENTS))
    factors = 4 * _FACTOR_COPIES * width_of(rank, rows, columns) * (rows + columns)
    if pair.experts > 1:
        factors += 4 * _FACTOR_COPIES * rank * pair.cost
    full = options.exact or (rank == short and bool(options.energy or options.max_bytes))
    gram = 8 * _EXACT_COPIES * short**2 if full else 8 * short**2 if short <= GRAM_SIDE else 0
    return matrix + factors + gram
