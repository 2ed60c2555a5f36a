from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine.execute import EngineSettings, execute
from cuvee.errors import CheckpointError, CuveeError, PlanError
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.sources import Joined
from support.checkpoints import Array, read_checkpoint, write_checkpoint
from support.merging import merge_arrays, op_of, plan_of

COUNTS = {"positions": np.arange(400_000, dtype=np.int32), "flag": np.array(True)}


class Watch:
    """Counts what a merge tells of its progress."""

    def __init__(self) -> None:
        self.bytes, self.names, self.lock = 0, list[str](), threading.Lock()

    def begin(self, stage: str, total_bytes: int) -> None: ...
    def end(self) -> None: ...
    def event(self, name: str, facts: object) -> None: ...

    def advance(self, count: int) -> None:
        with self.lock:
            self.bytes += count

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        with self.lock:
            self.names.append(name)


def test_tensors_without_a_method_are_copied(tmp_path: Path) -> None:
    values = np.frombuffer(np.random.default_rng(0).bytes(600_000), np.float16).reshape(3, -1)  # NaNs of every kind
    merged = merge_arrays(tmp_path, None, [{"w": values}], {}, dtype="F16", has_base=False)
    assert merged["w"].tobytes() == values.tobytes()


def test_copies_that_agree_are_made(tmp_path: Path) -> None:
    for dtype, name in (("I32", "positions"), ("BOOL", "flag")):
        tensors = {name: COUNTS[name]}
        merged = merge_arrays(tmp_path / dtype, None, [tensors] * 3, {}, dtype=dtype, has_base=False)
        np.testing.assert_array_equal(merged[name], COUNTS[name])


@pytest.mark.parametrize("position", [0, 200_000, 399_999])
def test_copies_that_differ_are_refused_with_both_models(position: int, tmp_path: Path) -> None:
    other = {"positions": COUNTS["positions"].copy()}
    other["positions"][position] += 1
    given = [{"positions": COUNTS["positions"]}] * 2 + [other]
    with pytest.raises(CheckpointError, match=r"'positions' holds I32 values, .* and they differ") as caught:
        merge_arrays(tmp_path, None, given, {}, dtype="I32", has_base=False)
    assert (caught.value.expected, caught.value.found) == ("the same values as in model0", "others in model2")


def run(folder: Path, ops: list[Any], checkpoints: list[Any], **settings: Any) -> tuple[dict[str, Array], Watch]:
    out, watch = folder / "out", Watch()
    out.mkdir()
    located = {uri: Path(uri) for checkpoint in checkpoints for uri in checkpoint.weight_files}
    execute(plan_of(ops, [c.name for c in checkpoints]), out, EngineSettings(**settings), located, watch)
    return read_checkpoint(out), watch


def test_joined_sources_are_copied_and_merged(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    parts = {name: rng.normal(size=(50, width)).astype(np.float32) for name, width in (("q", 7), ("k", 3), ("v", 3))}
    fused = {"qkv": rng.normal(size=(50, 13)).astype(np.float32)}
    split = open_checkpoint(Directory(write_checkpoint(tmp_path / "split", parts)), "split")
    whole = open_checkpoint(Directory(write_checkpoint(tmp_path / "whole", fused)), "whole")
    source = Joined(tuple(split.tensors[name] for name in "qkv"), 1)
    chosen = {"weight": (1.0, 3.0), "normalize": True}
    ops = [
        op_of("copied", [source], "F32", None, {}, has_base=False),
        op_of("merged", [source, whole.tensors["qkv"]], "F32", "linear", chosen, has_base=False),
    ]
    found, _ = run(tmp_path, ops, [split, whole], threads=1, block_elements=17)
    joined = np.concatenate([parts[name] for name in "qkv"], 1)
    np.testing.assert_array_equal(found["copied"], joined)
    np.testing.assert_allclose(found["merged"], 0.25 * joined + 0.75 * fused["qkv"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 3, "block_elements": 1024}, {"processes": 2}])
def test_progress_counts_every_byte_and_tensor_once(settings: dict[str, Any], tmp_path: Path) -> None:
    tensors = {f"t{i}": np.ones((i, 3000), np.float32) for i in (1, 30, 2)} | {"none": np.ones(0, np.float32)}
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", tensors)), "m")
    chosen = {"weight": (1.0, 1.0), "normalize": False}
    ops = [
        op_of(name, [stored] * 2, "F32", "linear", chosen, has_base=False) for name, stored in opened.tensors.items()
    ]
    ops.append(op_of("copy", [opened.tensors["t30"]], "F32", None, {}, has_base=False))
    found, watch = run(tmp_path, ops, [opened], **settings)
    assert sorted(watch.names) == sorted(found)
    assert watch.bytes == sum(array.nbytes for array in found.values())
    assert (found["t30"] == 2).all()


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 4, "block_elements": 64}, {"processes": 2}])
def test_the_first_failure_is_told_as_it_is(settings: dict[str, Any], tmp_path: Path) -> None:
    bad = np.ones((40, 100), np.float32)
    bad[7, 7] = np.nan
    tensors = {f"t{i}": np.ones((40, 100), np.float32) for i in range(9)} | {"bad": bad}
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", tensors)), "m")
    chosen = {"weight": (1.0,), "normalize": True}
    ops = [op_of(name, [stored], "F16", "linear", chosen, has_base=False) for name, stored in opened.tensors.items()]
    with pytest.raises(CheckpointError, match="'bad' of m holds values that are not finite") as caught:
        run(tmp_path, ops, [opened], **settings)
    assert caught.value.tensor == "bad"


def test_a_file_cut_short_after_planning_is_named(tmp_path: Path) -> None:
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", {"w": np.ones(5000)})), "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    op = op_of("w", [opened.tensors["w"]] * 2, "F32", "linear", {"weight": (1, 1), "normalize": True}, has_base=False)
    with pytest.raises(CheckpointError, match="ends before its tensors do") as caught:
        run(tmp_path, [op], [opened], threads=1)
    assert str(path) in str(caught.value)


def test_a_budget_too_small_for_a_block_is_refused(tmp_path: Path) -> None:
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", {"w": np.ones(5000)})), "m")
    op = op_of("w", [opened.tensors["w"]] * 2, "F32", "linear", {"weight": (1, 1), "normalize": True}, has_base=False)
    with pytest.raises(PlanError, match="2 models at once do not fit the memory budget"):
        run(tmp_path, [op], [opened], threads=1, memory=100_000)


@pytest.mark.parametrize("devices", ["tpu", "cuda:x", "cuda:99", "cpu,cuda:99"])
def test_devices_that_are_not_there_are_refused(devices: str, tmp_path: Path) -> None:
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "m", {"w": np.ones(5)})), "m")
    op = op_of("w", [opened.tensors["w"]], "F32", None, {}, has_base=False)
    with pytest.raises(CuveeError, match=r"unknown device|is not there"):
        run(tmp_path, [op], [opened], devices=devices)


def test_rounding_is_to_nearest_even_once(tmp_path: Path) -> None:
    """Halfway between two bfloat16 numbers the even one wins; a hair more goes up. In float16 alike."""
    values = np.array(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23, -1 - 2**-8, 1 + 2**-11, 1 + 2**-11 + 2**-23], np.float32
    )
    chosen = {"weight": (1.0,), "normalize": False}
    found = merge_arrays(tmp_path / "b", "linear", [{"w": values}], chosen, dtype="BF16", has_base=False)["w"]
    assert found.astype(float).tolist() == [1, 1 + 2**-6, 1 + 2**-7, -1, 1, 1]
    found = merge_arrays(tmp_path / "h", "linear", [{"w": values}], chosen, dtype="F16", has_base=False)["w"]
    assert found.astype(float).tolist()[4:] == [1, 1 + 2**-10]
