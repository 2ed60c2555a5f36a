"""Methods prepared for the whole model: as if its tensors lay end to end in one, whatever runs them and however."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine.execute import EngineSettings, execute
from cuvee.errors import CheckpointError, MethodError
from cuvee.methods import registry
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, Over, Prepared
from cuvee.progress import Silent
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from methods.cases import arguments, models, spec_of
from methods.oracles import Case
from methods.test_oracles import assert_close, oracle
from support.checkpoints import Array, read_checkpoint, write_checkpoint
from support.merging import merge_arrays, op_of, plan_of

SHAPES: dict[str, tuple[int, ...]] = {
    "a": (300, 1001), "b": (7,), "c": (0, 3), "d": (70_001,), "e": (), "f": (40, 30),
}  # fmt: skip
METHODS = {
    "ties": {"trim_scope": "model", "rescale": True},
    "metagpt": {"norm_scope": "model"},
    "nan": {"norm_scope": "model"},
}


def uneven(dtype: str) -> list[dict[str, Array]]:
    """Models whose tensors moved by very different amounts, so that a model's largest changes lie in few of them."""
    given = models(spec_of("ties"), dtype, SHAPES, has_base=True)
    for number, (name, base) in enumerate(given[0].items()):
        for place, model in enumerate(given[1:]):
            scale = 0.25 ** ((number * (place + 1) + place) % 4)
            model[name] = (base + (model[name] - base) * scale).astype(base.dtype)
    return given


def end_to_end(tensors: Mapping[str, Array]) -> Array:
    return np.concatenate([tensors[name].ravel() for name in SHAPES])


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_formula_on_all_tensors_end_to_end(method: str, dtype: str, tmp_path: Path) -> None:
    given = uneven(dtype)
    chosen = arguments(spec_of(method), 3, **METHODS[method])
    merged = merge_arrays(tmp_path, method, given, chosen, dtype=dtype, has_base=True)
    base, *arrays = (end_to_end(model).astype(np.float64) for model in given)
    expected = oracle(method, Case(arrays, base, 0), chosen)
    assert_close(end_to_end(merged), expected, dtype, method)
    alone = slice(300_307, 370_308)  # the tensor d
    single = oracle(method, Case([array[alone] for array in arrays], base[alone], 0), chosen)
    assert np.abs(single.value - expected.value[alone]).max() > 0.005, "the scope makes a difference here"


def test_trimming_the_model_keeps_exactly_so_many_and_the_first_of_equals(tmp_path: Path) -> None:
    base = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    model = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
    chosen = arguments(spec_of("ties"), 1, weight=1.0, density=0.5, trim_scope="model", lively=False)
    merged = merge_arrays(tmp_path, "ties", [base, model], chosen, dtype="F32", has_base=True)
    kept = end_to_end(merged) != 0
    assert kept.sum() == int(0.5 * kept.size)
    assert kept[: kept.sum()].all(), "among equals the first tensors, in the order of the plan, and lowest indices win"


def run(folder: Path, method: str, count: int = 3, **settings: Any) -> dict[str, Array]:
    """A plan in which other ops stand between the ones that are prepared together, in two groups by density."""
    if not (folder / "in0").exists():
        for number, tensors in enumerate(uneven("BF16")):
            write_checkpoint(folder / f"in{number}", tensors)
    opened = [open_checkpoint(Directory(folder / f"in{number}"), f"in{number}") for number in range(4)]
    ops = []
    for number, name in enumerate(SHAPES):
        sources = [checkpoint.tensors[name] for checkpoint in opened]
        share = 0.2 if number % 2 else 0.6
        chosen = arguments(spec_of(method), count, density=share, **METHODS[method])
        ops.append(op_of(name, sources, "BF16", method, chosen, True))
        ops.append(op_of(f"{name}.copy", sources[:1], "BF16", None, {}, False))
        ops.append(
            op_of(f"{name}.sum", sources, "BF16", "task_arithmetic", arguments(spec_of("task_arithmetic"), 3), True)
        )
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    located = {uri: Path(uri) for checkpoint in opened for uri in checkpoint.weight_files}
    execute(plan_of(ops, [c.name for c in opened]), out, EngineSettings(**settings), located, Silent())
    return read_checkpoint(out)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_however_a_merge_is_run(method: str, tmp_path: Path) -> None:
    reference = run(tmp_path, method, threads=1, block_elements=1 << 30)
    for settings in (
        {"threads": 1, "block_elements": 1024},
        {"threads": 4, "block_elements": 4096},
        {"threads": 2, "processes": 2},
    ):
        found = run(tmp_path, method, **settings)
        assert [name for name in reference if found[name].tobytes() != reference[name].tobytes()] == [], settings


def test_tensors_of_different_densities_are_ranked_apart(tmp_path: Path) -> None:
    merged = run(tmp_path, "ties", threads=1)
    base = read_checkpoint(tmp_path / "in0")
    for names, share in (("ace", 0.6), ("bdf", 0.2)):
        deltas = [
            np.concatenate([(model[name].astype(np.float32) - base[name].astype(np.float32)).ravel() for name in names])
            for model in (read_checkpoint(tmp_path / f"in{number}") for number in (1, 2, 3))
        ]
        kept = np.zeros(deltas[0].size, bool)
        for delta in deltas:
            kept[np.argsort(-np.abs(delta), kind="stable")[: int(share * delta.size)]] = True
        moved = np.concatenate([(merged[name] != base[name]).ravel() for name in names])
        assert not (moved & ~kept).any()
        assert moved.sum() > 0.7 * kept.sum()


@pytest.mark.parametrize("method", METHODS)
def test_damage_is_named_and_spreads_no_further(method: str, tmp_path: Path) -> None:
    given = uneven("F32")
    given[2]["f"][3, 5] = np.nan
    chosen = arguments(spec_of(method), 3, **METHODS[method])
    with pytest.raises(CheckpointError, match="not finite") as caught:
        merge_arrays(tmp_path / "refused", method, given, chosen, dtype="F32", has_base=True)
    assert (caught.value.tensor, caught.value.checkpoint) == ("f", "model2")
    merged = merge_arrays(tmp_path / "let", method, given, chosen, dtype="F32", has_base=True, allow_nonfinite=True)
    assert np.isfinite(merged["a"]).all()


def test_a_method_that_needs_rows_cannot_be_prepared_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    with pytest.raises(MethodError, match="cannot scan the whole model"):

        @merge_method("odd", base="required", models=(1, 1), scope="rows", prepare=lambda scan: 1)
        def odd(deltas: Deltas, found: Prepared[int], *, over: Over = "model") -> None: ...
