from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.errors import PlanError
from cuvee.planning.cost import check_disk, estimate
from cuvee.planning.ops import Plan
from cuvee.tensors import disk
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of


def plan(method: str | None, inputs: int = 2, elements: int = 10**9) -> Plan:
    stored = [Stored(f"f{i}", 0, "BF16", (elements,)) for i in range(inputs)]
    return plan_of([op_of("w", stored, "BF16", method, {}, has_base=False)], [f"m{i}" for i in range(inputs)])


def test_bytes_are_those_of_the_plan(tmp_path: Path) -> None:
    found = estimate(plan("linear"), tmp_path, threads=2, block_elements=1 << 17)
    assert found.bytes_read == 4 * 10**9
    assert found.bytes_written == plan("linear").shards[0].size
    assert found.disk_free == disk.free_bytes(tmp_path)


def seconds(method: str | None, inputs: int = 2, threads: int = 1, elements: int = 10**9) -> float:
    return estimate(plan(method, inputs, elements), Path(), threads=threads, block_elements=1 << 17).seconds


def test_more_work_takes_longer() -> None:
    assert seconds(None) < seconds("linear") < seconds("ties")
    assert seconds("linear", 2) < seconds("linear", 3)
    assert seconds("ties", threads=2) < seconds("ties", threads=1)
    assert seconds("ties", elements=10**9) < seconds("ties", elements=2 * 10**9)


def test_memory_grows_with_models_threads_and_blocks_and_not_with_tensors() -> None:
    def memory(inputs: int = 2, threads: int = 1, block: int = 1 << 17, elements: int = 10**9) -> int:
        return estimate(plan("ties", inputs, elements), Path(), threads=threads, block_elements=block).peak_memory

    assert memory(inputs=3) > memory()
    assert memory(threads=2) > memory()
    assert memory(block=1 << 18) > memory()
    assert memory(elements=10**11) == memory()


def test_a_disk_that_is_too_small_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = plan("linear").bytes_written
    monkeypatch.setattr(disk, "free_bytes", lambda _: size)
    check_disk(plan("linear"), tmp_path / "out")
    monkeypatch.setattr(disk, "free_bytes", lambda _: size - 1)
    with pytest.raises(PlanError, match=r"not enough disk space for .*out") as caught:
        check_disk(plan("linear"), tmp_path / "out")
    assert caught.value.expected == "2.00 GB free"
