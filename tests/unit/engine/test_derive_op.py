"""Ops with outputs of their own, through the real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.derivations import registry
from cuvee.derivations.registry import Array, Inputs
from cuvee.engine.execute import EngineSettings
from cuvee.engine.workplace import Workplace
from cuvee.errors import CheckpointError
from cuvee.lora.files import Run, derived, read_small
from cuvee.planning.ops import Output, PlannedModel, plan_from_json, plan_to_json
from cuvee.progress import Silent
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.sources import Stored
from support.checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A derivation of the tests: column sums, and the whole tensor times a factor."""

    def both(inputs: Inputs, *, factor: float) -> tuple[Array, Array]:
        whole = inputs[0].whole()
        return whole.sum(axis=0), np.concatenate([inputs[0].rows(0, 1), inputs[0].rows(1, 3)]) * np.float32(factor)

    registry.get_derivation("change")
    monkeypatch.setitem(registry._derivations, "both", both)


def run(tmp_path: Path, factor: float = 2.0, shape: tuple[int, ...] = (4,)) -> Any:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    opened = open_checkpoint(Directory(write_checkpoint(tmp_path / "in", {"w": values})), "in")
    source = opened.tensors["w"]
    assert isinstance(source, Stored)
    outputs = (Output("sums", shape, "F64", shard=1), Output("w", (3, 4), "F16", shard=0))
    op = derived("both", [source], outputs, {"factor": factor})
    located = {uri: Path(uri) for uri in opened.weight_files}
    place = Workplace(tmp_path / "home", tmp_path / "out")
    place.home.mkdir()
    job = Run(place, False, (PlannedModel("in", "in", ""),), 0, EngineSettings(threads=2), located, Silent(), "0")
    files = ("one.safetensors", "two.safetensors")
    job.execute("test", "test", [op], files)
    place.publish()
    return values, job.plan("test", [op], files)


def test_every_output_goes_to_its_place_in_its_file(tmp_path: Path) -> None:
    values, plan = run(tmp_path)
    one, two = (read_small(tmp_path / "out" / f"{name}.safetensors") for name in ("one", "two"))
    assert np.array_equal(one["w"], (2 * values).astype(np.float16))
    assert np.array_equal(two["sums"], values.sum(axis=0).astype(np.float64))
    assert (plan.ops[0].nbytes, plan.ops[0].bytes_read) == (12 * 2 + 4 * 8, 12 * 4)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'w' came out with values that are not finite in F16"):
        run(tmp_path, factor=1e6)


def test_a_derivation_that_breaks_its_plan_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gave \(4,\) for sums, planned as \(5,\)"):
        run(tmp_path, shape=(5,))
