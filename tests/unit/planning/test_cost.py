from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import PlanError
from cuvee.methods.registry import get_method
from cuvee.planning.cost import Cost, check_disk, estimate, work_of
from cuvee.planning.machine import Machine, kind_of
from cuvee.planning.ops import Plan
from cuvee.tensors import disk
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of


def plan(method: str | None, inputs: int = 2, elements: int = 10**9) -> Plan:
    stored = [Stored(f"f{i}", 0, "BF16", (elements,)) for i in range(inputs)]
    return plan_of([op_of("w", stored, "BF16", method, {}, has_base=False)], [f"m{i}" for i in range(inputs)])


HERE = Machine()
KIND = kind_of(plan("linear").ops[0])


def cost(planned: Plan, machine: Machine = HERE, block: int = 1 << 17, processes: int = 1, opening: float = 0) -> Cost:
    return estimate(planned, Path(), machine=machine, processes=processes, block_elements=block, opening=opening)


def test_bytes_are_those_of_the_plan(tmp_path: Path) -> None:
    found = estimate(plan("linear"), tmp_path, machine=Machine(), processes=1, block_elements=1 << 17)
    assert found.bytes_read == 4 * 10**9
    assert found.bytes_written == plan("linear").shards[0].size
    assert found.disk_free == disk.free_bytes(tmp_path)


def seconds(method: str | None, inputs: int = 2, elements: int = 10**9, **facts: Any) -> float:
    return cost(plan(method, inputs, elements), Machine(**facts)).seconds


def test_more_work_takes_longer() -> None:
    assert seconds(None) < seconds("linear") < seconds("ties")
    assert seconds("linear", 2) < seconds("linear", 3)
    assert seconds("ties", cores=2) < seconds("ties", cores=1)
    assert seconds("ties", elements=10**9) < seconds("ties", elements=2 * 10**9)


START = 0.5 + 0.1


def test_a_core_reads_computes_or_writes_and_storage_bounds_all_of_them() -> None:
    """One billion elements: 4 GB in, 2 GB out, and a measured nanosecond each."""
    fast: dict[str, Any] = {"read": 1e15, "write": 1e15, "durable": 1e15, "cores": 1, "seconds": {KIND: 1e-15}}
    assert seconds("linear", **{**fast, "seconds": {KIND: 1e-9}}) == pytest.approx(1.0 + START, abs=1e-4)
    assert seconds("linear", **{**fast, "seconds": {KIND: 1e-9}, "cores": 4}) == pytest.approx(0.25 + START, abs=1e-4)
    assert seconds("linear", **{**fast, "read": 1e9}) == pytest.approx(4.0 + START, abs=1e-4)
    assert seconds("linear", **{**fast, "write": 1e9}) == pytest.approx(2.0 + START, abs=1e-4)
    both: dict[str, Any] = {**fast, "read": 1e9, "seconds": {KIND: 1e-9}}
    assert seconds("linear", **both) == pytest.approx(5.0 + START, abs=1e-4)
    assert seconds("linear", **{**both, "cores": 64}) == pytest.approx(4.0 + START, abs=1e-4)
    assert seconds("linear", **{**fast, "write": 1e9, "nodes": 4}) == pytest.approx(0.5 + START, abs=1e-4)
    assert seconds("linear", **{**fast, "start_seconds": 2.0}) == pytest.approx(2.1, abs=1e-4)


def test_opening_is_done_again() -> None:
    assert cost(plan(None), opening=7.0).seconds == pytest.approx(cost(plan(None)).seconds + 7)


def test_what_is_merged_goes_to_the_disk_meanwhile_and_what_is_copied_does_not() -> None:
    """2 GB out: merged in a second, copied in two, and 2 s to the disk."""
    slow: dict[str, Any] = {"read": 1e15, "write": 1e15, "durable": 1e9, "copy": 1e9, "cores": 1}
    assert seconds("linear", **slow, seconds={KIND: 1e-9}) == pytest.approx(2.0 + START, abs=1e-4)
    assert seconds("linear", **slow, seconds={KIND: 5e-9}) == pytest.approx(5.0 + START, abs=1e-4)
    assert seconds(None, **slow) == pytest.approx(4.0 + START, abs=1e-4)


def test_a_kind_that_was_not_measured_costs_what_the_dearest_did() -> None:
    other = ("slerp", "F32", ("F32",), False)
    found = seconds("linear", cores=1, read=1e15, write=1e15, durable=1e15, seconds={other: 2e-9})
    assert found == pytest.approx(2.0 + START, abs=1e-4)


def test_a_decomposition_costs_more_than_its_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    op = replace(plan("linear").ops[0], shape=(300, 20, 50))
    assert work_of(op) == 300_000
    matrix = replace(get_method("linear"), scope="matrix")
    monkeypatch.setattr("cuvee.planning.cost.get_method", lambda _: matrix)
    assert work_of(op) == 300_000 * 50
    assert work_of(replace(op, shape=(300,))) == 300


def test_memory_grows_with_models_cores_and_blocks_and_not_with_tensors() -> None:
    def memory(inputs: int = 2, cores: int = 1, block: int = 1 << 17, elements: int = 10**9, processes: int = 1) -> int:
        return cost(plan("ties", inputs, elements), Machine(cores=cores), block, processes).peak_memory

    assert memory(inputs=3) > memory()
    assert memory(cores=2) > memory()
    assert memory(block=1 << 18) > memory()
    assert memory(processes=2) > memory()
    assert memory(elements=10**11) == memory()


def test_measured_memory_stands_before_reckoned() -> None:
    measured = Machine(cores=3, process_bytes=1000, worker_bytes=500, lane_bytes=10, probed=True)
    assert cost(plan("ties"), measured).peak_memory == 1030
    assert cost(plan("ties"), measured, processes=2).peak_memory == 2030
    assert cost(plan(None), Machine(process_bytes=1000)).peak_memory == 1000


def test_no_block_is_larger_than_the_largest_tensor() -> None:
    bare = Machine(cores=1, process_bytes=1000)
    assert cost(plan("linear", inputs=2, elements=100), bare).peak_memory == 1000 + 100 * 4 * 9


def test_a_disk_that_is_too_small_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = plan("linear").bytes_written
    monkeypatch.setattr(disk, "free_bytes", lambda _: size)
    check_disk(plan("linear"), tmp_path / "out")
    monkeypatch.setattr(disk, "free_bytes", lambda _: size - 1)
    with pytest.raises(PlanError, match=r"not enough disk space for .*out") as caught:
        check_disk(plan("linear"), tmp_path / "out")
    assert caught.value.expected == "2.00 GB free"
