"""Laws 2 and 3 over every registered method: identity; the same bytes however a merge is cut up; inputs left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine.execute import EngineSettings, execute
from cuvee.methods.stages import merger
from cuvee.numerics.block import Block
from cuvee.progress import Silent
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from methods.cases import METHODS, arguments, bases, input_count, models, spec_of
from methods.oracles import LOSSLESS
from support.checkpoints import DTYPES, Array, read_checkpoint, write_checkpoint
from support.merging import merge_arrays, op_of, plan_of, scan_of, ulp

SHAPES = {"layers.0.weight": (300, 1001), "norm.weight": (5003,), "scalar": ()}
CUBES = {"conv.weight": (67, 9, 5), "experts.weight": (5, 31, 43)}
DTYPE_CODES = ("F32", "BF16", "F16")
BOTH = [(method, has_base) for method in METHODS for has_base in bases(spec_of(method))]
LARGEST = {"F16": 65504.0, "BF16": 2.0**127 * (2 - 2.0**-7), "F32": 2.0**126}


def varied(dtype: str, seed: int = 5) -> dict[str, Array]:
    """Tensors with values of very different sizes, zeros of both signs and subnormals among them."""
    rng = np.random.default_rng(seed)
    big = rng.normal(0, 1, (40, 257)) * np.exp2(rng.integers(-12, 8, (40, 257)))
    vector = np.array([0.0, -0.0, 1.0, -1.0, 2.0**-130, 2.0**-24, -(2.0**-15), 3.0, 0.1, -250.0])
    tensors = {"big": big, "odd": vector, "conv": big[:5, :45].reshape(5, 15, 3)}
    return {name: values.astype(DTYPES[dtype]) for name, values in tensors.items()}


def assert_same_within_a_rounding(result: Mapping[str, Array], model: Mapping[str, Array], dtype: str) -> None:
    """In 16 bits a float32 result that is off by a few units still rounds back to the very value."""
    for name, values in model.items():
        exact = values.astype(np.float64)
        error = np.abs(result[name].astype(np.float64) - exact)
        allowed = 2 * ulp(exact, "F32") if dtype == "F32" else 0.0
        assert (error <= allowed).all(), (
            f"{name}: {exact[error > allowed][:4]} became {result[name][error > allowed][:4]}"
        )


@pytest.mark.parametrize("dtype", DTYPE_CODES)
@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_merging_a_model_with_itself_gives_it_back(method: str, has_base: bool, dtype: str, tmp_path: Path) -> None:
    spec, model = spec_of(method), varied(dtype)
    count = input_count(spec)
    chosen = arguments(spec, count, weight=(0.3, 0.7, 0.45))
    merged = merge_arrays(tmp_path, method, [model] * (count + has_base), chosen, dtype=dtype, has_base=has_base)
    assert_same_within_a_rounding(merged, model, dtype)


@pytest.mark.parametrize("dtype", DTYPE_CODES)
@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_the_largest_values_survive_a_merge_with_themselves(
    method: str, has_base: bool, dtype: str, tmp_path: Path
) -> None:
    spec, largest = spec_of(method), LARGEST[dtype]
    model = {"w": np.array([largest, -largest, 1.0, 0.0, largest, -1.0]).astype(DTYPES[dtype])}
    count = input_count(spec)
    for number, weight in enumerate([(0.3, 0.7, 0.45), (0.1, 0.2, 0.4), (0.9, 0.6, 0.7), (1.0, 1.0, 1.0)]):
        chosen = arguments(spec, count, weight=weight)
        given = [model] * (count + has_base)
        merged = merge_arrays(tmp_path / str(number), method, given, chosen, dtype=dtype, has_base=has_base)
        assert_same_within_a_rounding(merged, model, dtype)


@pytest.mark.parametrize("dtype", DTYPE_CODES)
@pytest.mark.parametrize("method", [name for name in METHODS if name in LOSSLESS])
def test_weight_one_on_one_model_gives_that_model(method: str, dtype: str, tmp_path: Path) -> None:
    spec = spec_of(method)
    has_base = spec.base == "required"
    chosen = arguments(spec, 1, lively=False, weight=1.0, **LOSSLESS[method])
    model, base = varied(dtype, 1), varied(dtype, 2)
    merged = merge_arrays(tmp_path, method, [base] * has_base + [model], chosen, dtype=dtype, has_base=has_base)
    for name, values in model.items():
        exact, start = values.astype(np.float64), base[name].astype(np.float64)
        # A difference from the base and its sum with it are each rounded to float32 once, then the result to `dtype`.
        slack = ulp(start, "F32") + ulp(exact - start, "F32") if has_base else 0.0
        bound = (slack + 0.5 * ulp(np.abs(exact) + slack, dtype) * (dtype != "F32")) if has_base else 0.0
        assert (np.abs(merged[name].astype(np.float64) - exact) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPE_CODES)
@pytest.mark.parametrize("method", [name for name in METHODS if name in LOSSLESS])
def test_weight_one_and_all_others_zero_gives_that_model(method: str, dtype: str, tmp_path: Path) -> None:
    spec = spec_of(method)
    has_base = spec.base == "required"
    chosen = arguments(spec, 3, lively=False, weight=(0.0, 1.0, 0.0), **LOSSLESS[method])
    given = models(spec, dtype, {"w": (31, 40)}, has_base=has_base, seed=3)
    merged = merge_arrays(tmp_path, method, given, chosen, dtype=dtype, has_base=has_base)["w"]
    # The inputs' differences are exact in float32, so nothing is rounded but the last digit of the sum with the base.
    bound = ulp(given[-2]["w"], "F32") if dtype == "F32" else 0.0
    assert (np.abs(merged.astype(np.float64) - given[-2]["w"].astype(np.float64)) <= bound).all()


def merge_everything(folder: Path, dtype: str, **settings: Any) -> dict[str, Array]:
    """One plan of all methods, over the same inputs: the tensors of each under its name."""
    folders = [folder / f"in{i}" for i in range(4)]
    if not folders[0].exists():
        flat, deep = (models(spec_of("ties"), dtype, shapes, has_base=True) for shapes in (SHAPES, CUBES))
        for number, place in enumerate(folders):
            write_checkpoint(place, flat[number] | deep[number])
    opened = [open_checkpoint(Directory(place), place.name) for place in folders]
    ops = []
    for method, has_base in BOTH:
        spec = spec_of(method)
        count = input_count(spec)
        used = opened[: count + has_base]
        for name in (*SHAPES, *CUBES):
            sources = [checkpoint.tensors[name] for checkpoint in used]
            label = f"{method}.{has_base}.{name}"
            ops.append(op_of(label, sources, dtype, method, arguments(spec, count), has_base))
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    located = {uri: Path(uri) for checkpoint in opened for uri in checkpoint.weight_files}
    plan = plan_of(ops, [c.name for c in opened], max_shard_bytes=3_000_000)
    execute(plan, out, EngineSettings(**settings), located, Silent())
    return read_checkpoint(out)


def differing(first: Mapping[str, Array], second: Mapping[str, Array]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if first[name].tobytes() != second[name].tobytes()]


def test_the_same_bytes_for_every_block_size_thread_count_and_process_count(tmp_path: Path) -> None:
    reference = merge_everything(tmp_path, "BF16", threads=1, block_elements=1 << 30)
    assert len(reference) == len(BOTH) * (len(SHAPES) + len(CUBES))
    for block_elements in (1024, 4096, 1 << 17):
        found = merge_everything(tmp_path, "BF16", threads=1, block_elements=block_elements)
        assert not differing(reference, found), f"blocks of {block_elements}"
    for threads, block in ((2, 4096), (4, 1024), (4, None)):
        found = merge_everything(tmp_path, "BF16", threads=threads, block_elements=block)
        assert not differing(reference, found), f"{threads} threads, blocks of {block}"
    found = merge_everything(tmp_path, "BF16", threads=2, processes=2)
    assert not differing(reference, found), "2 processes"


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_odd_blocks_give_the_same_wide_bytes(dtype: str, tmp_path: Path) -> None:
    """In 64 bits even the order in which a scan adds up its sums would show."""
    reference = merge_everything(tmp_path, dtype, threads=1, block_elements=1 << 30)
    assert not differing(reference, merge_everything(tmp_path, dtype, threads=2, block_elements=9999))


def test_torch_gives_the_same_within_one_rounding(tmp_path: Path) -> None:
    ours = merge_everything(tmp_path, "BF16", threads=1)
    torch = merge_everything(tmp_path, "BF16", threads=1, devices="torch:cpu")
    for name, mine in ours.items():
        error = np.abs(torch[name].astype(np.float64) - mine.astype(np.float64))
        assert (error <= ulp(mine, "BF16")).all(), name
        assert (error > 0).mean() < 0.001, f"{name}: roundings differ far more often than last bits do"


def test_random_masks_are_the_same_on_torch(tmp_path: Path) -> None:
    spec, shapes = spec_of("dare_linear"), {"w": (97, 1013)}
    given = models(spec, "F32", shapes, has_base=True, wanted=1)
    given[1]["w"] = given[0]["w"] + np.float32(0.5)  # a change everywhere: what stays the base was dropped
    chosen = arguments(spec, 1, weight=1.0, density=0.37)
    masks = []
    for number, devices in enumerate(("cpu", "torch:cpu")):
        merged = merge_arrays(
            tmp_path / str(number), "dare_linear", given, chosen, dtype="F32", has_base=True, devices=devices
        )
        masks.append(merged["w"] != given[0]["w"])
    np.testing.assert_array_equal(*masks)
    assert abs(masks[0].mean() - 0.37) < 0.01


@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_methods_do_not_write_to_their_inputs(method: str, has_base: bool) -> None:
    spec = spec_of(method)
    given = [model["w"].astype(np.float32) for model in models(spec, "F32", {"w": (23, 64)}, has_base=has_base)]
    if spec.wants == "deltas":
        given = [array - given[0] for array in given[1:]] if has_base else given
    before = [array.copy() for array in given]
    for array in given:
        array.setflags(write=False)
    shaped: Iterable[Array] = given if spec.scope != "elements" else [array.reshape(-1) for array in given]
    block = Block(tuple(shaped), 0, 77)
    chosen = arguments(spec, input_count(spec))
    prepared: tuple[Any, ...] = ()
    if spec.prepare is not None:
        scan = scan_of(Block(tuple(given), 0, 77), align=1 if spec.scope == "elements" else 64)
        prepared = (spec.prepare(scan, **{name: chosen[name] for name in spec.prepare_arguments}),)
    whole = scan_of(Block(tuple(given), 0, 77), align=1 if spec.scope == "elements" else 64)
    merged = merger(spec, lambda: whole, prepared, chosen)(block)
    assert merged.shape == block[0].shape
    assert merged.dtype == np.float32
    for array, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, copy)
