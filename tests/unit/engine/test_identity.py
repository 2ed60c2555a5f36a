from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine import identity
from cuvee.engine.execute import EngineSettings
from cuvee.engine.identity import difference, identity_of, refuse_changed_files
from cuvee.errors import CheckpointError
from cuvee.planning.ops import Plan, PlannedModel
from cuvee.tensors.sources import Joined, Stored
from support.merging import op_of, plan_of

CPU = EngineSettings()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    return path


def plan(file: Path, weight: float = 0.5, offset: int = 0) -> Plan:
    source = Stored(str(file), offset, "F32", (2, 3))
    return plan_of([op_of("w", [source, source], "F32", "linear", {"weight": (weight, 1.0)}, False)], ["a", "b"])


def of(plan: Plan, file: Path, text: str = "text", settings: EngineSettings = CPU) -> identity.Identity:
    return identity_of(plan, text, {str(file): file}, settings)


def test_equal_runs_have_equal_identities_whatever_does_not_change_the_bytes(file: Path) -> None:
    settings = EngineSettings(threads=3, processes=2, memory=1 << 20, block_elements=77, release_cache=True)
    assert of(plan(file), file) == of(plan(file), file, settings=settings)
    assert difference(of(plan(file), file), of(plan(file), file, settings=settings)) is None


def test_what_changes_the_bytes_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(plan(file), file)
    changes = {
        "Cuvee's version is 9 now and was 0": of(replace(plan(file), version="9"), file),
        "the recipe changed": of(plan(file, weight=0.25), file, "other text"),
        "the kind of device is cuda now and was cpu": of(plan(file), file, settings=EngineSettings(devices="cuda:0")),
        "an option that changes the output was changed": of(replace(plan(file), seed=12), file),
        "the model a changed": of(replace(plan(file), models=(PlannedModel("a", "a", "other"),)), file),
    }
    assert {why: difference(first, now) for why, now in changes.items()} == {why: why for why in changes}
    os.utime(file, ns=(1, 1))
    assert difference(first, of(plan(file), file)) == f"{file} changed"
    monkeypatch.setattr(np, "__version__", "1.0")
    assert difference(first, of(plan(file), file)) == "the installed numpy changed"


def test_a_change_of_a_method_s_code_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(plan(file), file)
    monkeypatch.setattr(identity, "_source_of", lambda name: "other")
    assert difference(first, of(plan(file), file)) == "the code of method linear changed"


def test_values_may_become_allowed_but_not_forbidden(file: Path) -> None:
    strict, lenient = (of(plan(file), file, settings=EngineSettings(allow_nonfinite=allow)) for allow in (False, True))
    assert difference(strict, lenient) is None
    assert "--allow-nonfinite" in str(difference(lenient, strict))


def test_devices_of_one_kind_are_alike(file: Path) -> None:
    kinds = [of(plan(file), file, settings=EngineSettings(devices=devices))["device"] for devices in
             ("cuda", "cuda:1", "cuda:0,cuda:1", "cuda:all", "torch:cpu", "cpu")]  # fmt: skip
    assert kinds == ["cuda", "cuda", "cuda", "cuda", "torch:cpu", "cpu"]


def test_files_of_the_hub_are_what_their_commit_says(file: Path) -> None:
    def at(moment: int) -> identity.Identity:
        os.utime(file, ns=(moment, moment))
        return identity_of(plan(file), "", {"hf://a/b@c/w": file}, CPU)

    assert at(1) == at(2)


def test_every_part_of_a_plan_counts(file: Path) -> None:
    first = plan(file)
    (op,) = first.ops
    (stored, _) = op.sources
    others = [
        replace(op, name="v"),
        replace(op, offset=op.offset + 4),
        replace(op, dtype="BF16"),
        replace(op, sources=(stored, replace(stored, offset=1))),
        replace(op, sources=(stored, Joined((stored,), 0))),
        replace(op, parameters={"weight": (0.5, 1)}),
        replace(op, parameters={"weight": ("0.5", 1.0)}),
        replace(op, parameters={"weight": (0.5, 1.0), "t": None}),
    ]
    digests = {of(replace(first, ops=(changed,)), file)["plan"] for changed in [op, *others]}
    assert len(digests) == 1 + len(others)


def test_arrays_count_by_every_value() -> None:
    def digest(value: object) -> str:
        return identity._digest(value)

    zeros = np.zeros(100_000, np.int64)  # whose text would leave most of them out
    other = zeros.copy()
    other[50_000] = 1
    assert digest(zeros) == digest(zeros.copy())
    assert len({digest(zeros), digest(other), digest(zeros.astype(np.int32)), digest(zeros.reshape(2, -1))}) == 4
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(("ab", "c")) != digest(("a", "bc"))
    with pytest.raises(TypeError, match="holds a object"):
        digest(object())


def test_inputs_that_changed_meanwhile_are_refused(file: Path) -> None:
    before = of(plan(file), file)
    refuse_changed_files(before, {str(file): file})
    file.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="was changed while it was being merged") as refused:
        refuse_changed_files(before, {str(file): file})
    assert refused.value.file == str(file)
    file.unlink()  # gone is not changed: what is read through an open file stays as it was
    refuse_changed_files(before, {str(file): file})


def test_the_code_of_a_method_is_the_file_it_is_written_in(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace as changed

    from cuvee.methods import registry

    code, names = tmp_path / "mine.py", dict[str, Any]()
    code.write_text("def apply(block, **_):\n    return block.arrays[0]\n")
    exec(compile(code.read_text(), str(code), "exec"), names)
    mine = changed(registry.get_method("linear"), apply=names["apply"])
    monkeypatch.setitem(registry._specs, "linear", mine)
    first = of(plan(file), file)
    assert difference(first, of(plan(file), file)) is None
    code.write_text("def apply(block, **_):\n    return block.arrays[1]\n")
    assert difference(first, of(plan(file), file)) == "the code of method linear changed"
