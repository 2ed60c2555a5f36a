"""Low-rank updates are added up before they are formed where the method is a sum, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine.execute import EngineSettings, execute
from cuvee.engine.reads import reads_of
from cuvee.methods.registry import get_method
from cuvee.progress import Silent
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.deltas import LowRank
from cuvee.tensors.location import Directory
from cuvee.tensors.sources import Source, stored_pieces
from cuvee.tensors.updates import Added
from support.checkpoints import read_checkpoint, write_checkpoint
from support.merging import op_of, plan_of

RNG = np.random.default_rng(11)
SHAPE = (40, 24)
RANKS = (2, 3, 5)
VALUES = {"w": SHAPE, "other": SHAPE} | {f"a{i}": (rank, 24) for i, rank in enumerate(RANKS)}
VALUES |= {f"b{i}": (40, rank) for i, rank in enumerate(RANKS)} | {"ta": (4, 40), "tb": (24, 4)}
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in VALUES.items()}
WIDE = {name: array.astype(np.float64) for name, array in ARRAYS.items()}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Source]:
    return dict(open_checkpoint(Directory(write_checkpoint(tmp_path / "m", ARRAYS)), "m").tensors)


def on(base: Source, stored: dict[str, Source], *numbers: int) -> Source:
    for number in numbers:
        base = Added(base, LowRank(stored[f"b{number}"], stored[f"a{number}"], 0.5 + number, SHAPE))
    return base


def turned(base: Source, stored: dict[str, Source]) -> Source:
    return Added(base, LowRank(stored["tb"], stored["ta"], 2.0, SHAPE, transposed=True))


def update(*numbers: int) -> Any:
    return sum((0.5 + n) * WIDE[f"b{n}"] @ WIDE[f"a{n}"] for n in numbers)


TURNED = 2.0 * (WIDE["tb"] @ WIDE["ta"]).T


def made(folder: Path, method: str, sources: list[Source], parameters: dict[str, Any], *, has_base: bool) -> Any:
    """The merged tensor, in float64, and what was read for it."""
    op = op_of("w", sources, "F32", method, parameters, has_base)  # type: ignore[arg-type]
    folder.mkdir()
    files = {piece.file: Path(piece.file) for source in sources for piece in stored_pieces(source)}
    plan = plan_of([op], [str(number) for number in range(len(sources))])
    execute(plan, folder, EngineSettings(threads=1), files, Silent())
    return read_checkpoint(folder)["w"].astype(np.float64), reads_of(op, get_method(method))


def near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


def test_a_mean_reads_each_base_once_and_one_sum_of_updates(stored: dict[str, Source], tmp_path: Path) -> None:
    base, other = stored["w"], stored["other"]
    sources = [on(base, stored, 0), other, on(base, stored, 1, 2), on(other, stored, 0)]
    weight = (0.5, 2.0, 1.0, 1.5)
    got, reads = made(tmp_path / "out", "linear", sources, {"weight": weight, "normalize": True}, has_base=False)
    deltas = 0.5 * update(0) + update(1, 2) + 1.5 * update(0)
    near(got, (1.5 * WIDE["w"] + 3.5 * WIDE["other"] + deltas) / 5.0)
    assert reads.sources[:2] == (base, other)
    assert len(reads.sources) == 3
    assert reads.coefficients == pytest.approx((0.3, 0.7, 1.0))


def test_updates_stored_the_other_way_are_a_sum_of_their_own(stored: dict[str, Source], tmp_path: Path) -> None:
    sources = [on(stored["w"], stored, 0), turned(stored["w"], stored)]
    parameters = {"weight": (1.0, 3.0), "normalize": False}
    got, reads = made(tmp_path / "out", "linear", sources, parameters, has_base=False)
    near(got, 4 * WIDE["w"] + update(0) + 3 * TURNED)
    assert len(reads.sources) == 3


@pytest.mark.parametrize("stage", [{}, {"lines": 0.25}])
def test_task_vectors_that_are_updates_are_one_sum(
    stage: dict[str, float], stored: dict[str, Source], tmp_path: Path
) -> None:
    base = stored["w"]
    sources = [base, on(base, stored, 0, 1), stored["other"], on(base, stored, 2), on(stored["other"], stored, 1)]
    parameters = {"weight": (1.0, 0.5, -0.3, 2.0), "normalize": False, "lambda_": 0.5, **stage}
    got, reads = made(tmp_path / "out", "task_arithmetic", sources, parameters, has_base=True)
    other = WIDE["other"] - WIDE["w"]
    change = update(0, 1) + 0.5 * other - 0.3 * update(2) + 2.0 * (other + update(1))
    near(got, WIDE["w"] + 0.5 * stage.get("lines", 1.0) * change)
    assert len(reads.sources) == 4
    assert reads.changes == {2}


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"weight": (1.0, 1.0), "normalize": False, "lambda_": 1.0, "match_norm": True}),
        ("ties", {"weight": (1.0, 1.0), "density": (1.0, 1.0)}),
    ],
)
def test_methods_that_look_at_models_apart_read_them_apart(
    method: str, parameters: dict[str, Any], stored: dict[str, Source]
) -> None:
    base = stored["w"]
    op = op_of("w", [base, on(base, stored, 0), on(base, stored, 1)], "F32", method, parameters, True)  # type: ignore[list-item]
    reads = reads_of(op, get_method(method))
    assert reads.coefficients is None
    assert reads.sources[1:] == tuple(source.delta for source in op.sources[1:] if isinstance(source, Added))
    assert reads.changes == {0, 1}
