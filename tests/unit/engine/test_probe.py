"""The probe: what it measures is this machine doing the plan's own work, and it leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cuvee.engine import probe as probing
from cuvee.engine.execute import EngineSettings
from cuvee.engine.probe import probe
from cuvee.methods.registry import get_method, method_names
from cuvee.planning.machine import Machine, kind_of
from cuvee.planning.ops import Plan
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of

ONE = EngineSettings(threads=1)
STARTING = probing._starting


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as shows anything."""
    for name, value in {"_TINY_ELEMENTS": 0, "_FIRST": 1 << 12, "_MOST": 1 << 14, "_CHUNK": 1 << 12}.items():
        monkeypatch.setattr(probing, name, value)
    monkeypatch.setattr(probing, "_starting", lambda: 0.25)


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


def test_starting_an_interpreter_is_timed_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("import time; time.sleep(30)")
    monkeypatch.chdir(tmp_path)
    assert 0.01 < STARTING() < 10
    monkeypatch.setattr(probing.sys, "executable", "")
    assert STARTING() == 0


def test_a_slow_moment_is_not_taken_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = plan(tmp_path, "linear").ops[0]
    taken = iter([3.0, 1.5])
    monkeypatch.setattr(probing, "_spent", lambda *_: next(taken))
    assert probing._seconds_each(op, None, 1) == 1.5 / (1 << 12)  # type: ignore[arg-type]
    waits = iter([0.2, 0.0])
    monkeypatch.setattr(probing.disk, "sync", lambda *_: time.sleep(next(waits)))
    assert probing._writing(tmp_path / "out", [])["durable"] > (probing._CHUNK * probing._CHUNKS / 2) / 0.1


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
