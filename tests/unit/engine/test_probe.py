"""The probe: what it measures is this machine doing the plan's own work, and it leaves nothing behind."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cuvee.engine import probe as probing
from cuvee.engine.execute import EngineSettings
from cuvee.engine.probe import probe
from cuvee.methods.registry import get_method, method_names
from cuvee.numerics.select import select_kth_largest, working_bytes
from cuvee.planning.machine import Machine, kind_of
from cuvee.planning.ops import Plan
from cuvee.tensors.sources import Joined, Stored
from support.merging import op_of, plan_of

ONE = EngineSettings(threads=1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as shows anything."""
    for name, value in {"_TINY_ELEMENTS": 0, "_FIRST": 1 << 12, "_MOST": 1 << 14, "_CHUNK": 1 << 12}.items():
        monkeypatch.setattr(probing, name, value)


def plan(folder: Path, method: str | None, shape: tuple[int, ...] = (64, 128), models: int = 2) -> Plan:
    stored = []
    for number in range(models):
        path = folder / f"m{number}"
        path.write_bytes(bytes(1 << 20))
        stored.append(Stored(str(path), 8, "BF16", shape))
    spec = get_method(method) if method else None
    parameters: dict[str, object] = {}
    for item in spec.parameters.values() if spec else ():
        value = (0.5 if item.kind is float else 1) if item.required else item.default
        parameters[item.argument] = (value,) * (models - (spec.base != "none")) if spec and item.per_model else value
    has_base = spec is not None and spec.base != "none"
    return plan_of([op_of("w", stored, "BF16", method, parameters, has_base)], [f"m{i}" for i in range(models)])


@pytest.mark.parametrize("method", method_names())
def test_every_method_can_be_measured(method: str, tmp_path: Path) -> None:
    spec = get_method(method)
    planned = plan(tmp_path, method, models=spec.min_models + (spec.base != "none"))
    found = probe(planned, tmp_path / "out", ONE, {"m0": tmp_path / "m0"})
    assert found.probed
    assert found.seconds[kind_of(planned.ops[0])] > 0
    assert 1e3 < found.read < 1e13
    assert 1e3 < found.write < 1e13


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    planned = plan(tmp_path, "linear")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    probe(planned, tmp_path / "out" / "deeper", ONE, {"m0": tmp_path / "m0"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_tiny_plan_is_not_worth_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_TINY_ELEMENTS", 64 * 128 + 1)
    assert probe(plan(tmp_path, "linear"), tmp_path, ONE, {}) == Machine(cores=1)


def test_where_nothing_can_be_written_the_usual_figures_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(probing.tempfile, "mkstemp", refuse)
    found = probe(plan(tmp_path, "linear"), tmp_path, ONE, {})
    assert (found.read, found.write, found.copy) == (Machine.read, Machine.write, Machine.copy)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
@pytest.mark.parametrize("offset", [0, 7, 1 << 40])
def test_made_up_weights_are_values_of_their_dtype(dtype: str, offset: int) -> None:
    first = Stored("a", offset, dtype, (64, 32))
    second = Joined((Stored("b", offset, dtype, (32, 32)), Stored("b", offset + 999 * 8, dtype, (32, 32))), 0)
    pool = probing._Pool(op_of("w", [first, second], dtype, "linear", {}, has_base=False), 0)
    values = [source.read(5, 2000, pool, np.dtype(np.float64)) for source in (first, second)]
    assert all(value.shape == (1995,) and np.isfinite(value).all() for value in values)
    if dtype != "I64":
        assert 0.001 < values[0].std() < 0.1


@pytest.mark.parametrize(("size", "searches"), [(1 << 22, 1), (1 << 22, 3), (1 << 24, 2)])
def test_what_searches_take_is_known_beforehand(size: int, searches: int) -> None:
    """Within a factor of two of what tracemalloc sees beyond the blocks."""
    values = [np.abs(np.random.default_rng(i).standard_normal(size, np.float32)) for i in range(searches)]
    grain = 1 << 18
    spans = [(start, start + grain) for start in range(0, size, grain)]

    def run(function: object, ranges: object) -> list[object]:
        return [function(span) for span in ranges]  # type: ignore[operator, attr-defined]

    tracemalloc.start()
    select_kth_largest(lambda a, b: [value[a:b] for value in values], spans, [size // 2] * searches, run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 < working_bytes(size, searches) / peak < 2
