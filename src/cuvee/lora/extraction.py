"""An adapter out of a fine-tune and its base: measured, planned, decomposed and written.

Three plans run on the ordinary engine: how much every tensor changed; the singular values, where ranks depend on them;
and the adapter itself. How a decomposition is computed is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.errors import CheckpointError, PlanError
from cuvee.lora.budget import within_budget
from cuvee.lora.cautions import cautions
from cuvee.lora.design import Design, compared, squares_name, values_name
from cuvee.lora.files import CONFIG, MEASURED, SPECTRA, WEIGHTS, Run, derived, read_small
from cuvee.lora.options import ExtractOptions
from cuvee.lora.pairs import Pair, Pairs
from cuvee.lora.peft_config import adapter_config
from cuvee.lora.ranks import Spectra, above, by_energy, by_size
from cuvee.numerics.row_blocks import Array
from cuvee.options import parse_size
from cuvee.planning.ops import Output, TensorOp
from cuvee.tensors import disk
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import itemsize


@dataclass(frozen=True)
class Held:
    """How closely an adapter holds one tensor's change.

    Attributes:
        name: the tensor's.
        shape: its shape.
        rank: of its factors; 0 if it is held whole or not at all.
        whole: whether it is saved whole.
        total: squared norm of the change; NaN if there is nothing to compare with.
        missing: squared norm of what the adapter lacks of it.
        values: the singular values kept; of stacked experts, the root of the sum of their squares.
        cost: numbers that each rank takes.

    """

    name: str
    shape: tuple[int, ...]
    rank: int
    whole: bool
    total: float
    missing: float
    values: Array
    cost: int


@dataclass(frozen=True)
class Extracted:
    """What was written: how every changed tensor is held, and how many did not change.

    `workers` is how many bytes worker processes took at most; `warnings` what the user should know.
    """

    held: tuple[Held, ...]
    unchanged: int
    workers: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The squared norm of all changes that can be measured."""
        return math.fsum(each.total for each in self.held if not math.isnan(each.total))

    @property
    def error(self) -> float:
        """The size of all that the adapter lacks, relative to all that changed."""
        return math.sqrt(math.fsum(each.missing for each in self.held) / (self.total or 1.0))

    @property
    def decomposed(self) -> tuple[Held, ...]:
        """The tensors that are held as factors."""
        return tuple(each for each in self.held if each.rank)


def extract(pairs: Pairs, checkpoints: tuple[Checkpoint, Checkpoint], options: ExtractOptions, run: Run) -> Extracted:
    """Writes the adapter's tensors and adapter_config.json into the folder of the run's workplace.

    Args:
        pairs: the tensors of the fine-tune and the base.
        checkpoints: the fine-tune and the base.
        options: what to extract.
        run: how plans run, and where.

    Raises:
        CuveeError: if nothing changed, values are not finite, or a budget cannot be met.

    """
    totals = _measure(pairs, run)
    changed = [pair for pair in pairs.taken if totals.get(pair.name, 1.0) > 0]
    if not changed:
        raise PlanError(
            f"{checkpoints[0].name} and {checkpoints[1].name} do not differ in what was asked for",
            fix="check that --model names the fine-tune and --base-model the model it came from",
        )
    changed = _as_modules(changed)
    limits = {pair.name: _limit(pair, options) for pair in changed if pair.decomposable}
    run = replace(run, settings=within_budget(run.settings, changed, limits, options))
    ranks = _ranks(changed, limits, totals, options, run, pairs.tied_among(changed))
    design = Design(tuple(changed), ranks, pairs, checkpoints, options)
    design.check()
    out = run.execute("extract", "lora extract", design.ops(totals), (WEIGHTS, SPECTRA))
    disk.write_file(out / CONFIG, adapter_config(design.config()).encode())
    written = read_small(out / SPECTRA)
    left = [pair for pair in pairs.left if totals.get(pair.name, 0.0) > 0 and pair.module not in design.whole]
    held = [_held(pair, totals, written, whole=ranks.get(pair.name) is None) for pair in changed]
    held += [_held(pair, totals, written, whole=False) for pair in left]
    unchanged = len(pairs.taken) + len(pairs.left) - len(held)
    return Extracted(tuple(held), unchanged, max(run.workers), cautions(pairs, options, design))


def _held(pair: Pair, totals: Mapping[str, float], written: Mapping[str, Array], *, whole: bool) -> Held:
    """What became of one tensor's change."""
    total = totals.get(pair.name, math.nan)
    values = written.get(values_name(pair), np.empty(0, np.float32))
    missing = 0.0 if whole else float(written[squares_name(pair)][1]) if values.size else total
    return Held(pair.name, pair.tuned.shape, len(values), whole, total, missing, values, pair.cost)


def _as_modules(changed: Sequence[Pair]) -> list[Pair]:
    """The same, stacked experts whole if anything else of their module has to be: PEFT takes all of it or nothing."""
    whole = {pair.module for pair in changed if not pair.decomposable}
    return [
        replace(pair, kind="whole") if pair.kind == "experts" and pair.module in whole else pair for pair in changed
    ]


def _limit(pair: Pair, options: ExtractOptions) -> int:
    """The largest rank that a tensor may get."""
    return min(*pair.sides, options.largest_rank or min(pair.sides))


def whole_tensors(pairs: Pairs) -> list[TensorOp]:
    """Ops that stand for everything that an extraction reads."""
    sources = {p.name: [source for source in (p.tuned, p.base) if source] for p in (*pairs.taken, *pairs.left)}
    return [derived("change", each, (Output(name, (1,), "F64"),), {}) for name, each in sources.items()]


def _measure(pairs: Pairs, run: Run) -> dict[str, float]:
    """The squared norm of every comparable tensor's change."""
    ops = [op for op in whole_tensors(pairs) if len(op.sources) == 2]
    measuring = replace(run, settings=replace(run.settings, allow_nonfinite=True))
    folder = measuring.execute("compare", "lora extract", ops, (MEASURED,), before="changes")
    totals = {name: float(value[0]) for name, value in read_small(folder / MEASURED).items()}
    if bad := next((name for name, total in totals.items() if not math.isfinite(total)), None):
        raise CheckpointError(
            f"tensor {bad!r} holds values that are not finite, in the fine-tune or the base",
            fix="use undamaged checkpoints, or leave it out with -e",
            tensor=bad,
        )
    return totals


def _ranks(
    changed: Sequence[Pair],
    limits: dict[str, int],
    totals: Mapping[str, float],
    options: ExtractOptions,
    run: Run,
    twice: Pair | None,
) -> dict[str, int]:
    """The rank of every tensor that is decomposed, by name; 0 for what is not worth a rank."""
    if not (options.energy or options.max_bytes or options.sv_epsilon) or not limits:
        return limits
    spectra = _spectra([pair for pair in changed if pair.decomposable], limits, totals, run)
    ranks = limits
    if options.energy:
        ranks = by_energy(spectra, totals, options.energy)
    if options.sv_epsilon:
        large = above(spectra, options.sv_epsilon)
        ranks = {name: min(rank, large[name]) for name, rank in ranks.items()}
        spectra = {name: values[: ranks[name]] for name, values in spectra.items()}
    if options.max_bytes:
        size = itemsize(options.code)
        copies = {pair.name: 2 if pair is twice else 1 for pair in changed}
        costs = {pair.name: copies[pair.name] * pair.cost * size for pair in changed if pair.decomposable}
        rest = sum(copies[pair.name] * math.prod(pair.tuned.shape) * itemsize(pair.tuned.dtype)
                   for pair in changed if not pair.decomposable)  # fmt: skip
        ranks = by_size(spectra, costs, parse_size(options.max_bytes) - rest)
    return ranks


def _spectra(pairs: Sequence[Pair], limits: Mapping[str, int], totals: Mapping[str, float], run: Run) -> Spectra:
    """The leading singular values of every tensor's change."""
    ops = [
        derived(
            "spectrum",
            compared(pair),
            (Output(pair.name, (limits[pair.name],), "F64"),),
            {"count": limits[pair.name], "total": totals[pair.name]}
            | ({"experts": pair.experts} if pair.kind == "experts" else {}),
        )
        for pair in pairs
    ]
    folder = run.execute("singular values", "lora extract", ops, (MEASURED,), before="spectra")
    return read_small(folder / MEASURED)
