"""The short version of `make test-faults`: a few trials of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import harness, injected
from support.tiny_models import make_llama


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> harness.Scene:
    folder = tmp_path_factory.mktemp("faults")
    return harness.Scene(folder / "s", make_llama(folder / "family", layers=6, hidden=32), harness.TIES)


def test_killed_at_random_instants(scene: harness.Scene) -> None:
    tally = harness.kills_at_random(scene, 6, seed=4)
    assert tally.wrong == []
    assert tally.stopped + tally.finished == 6


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_killed_before_chosen_changes_of_the_disk(power: bool, scene: harness.Scene) -> None:
    changes = harness.changes_of(scene)
    tally = harness.kills_at_changes(scene, [changes // 2, changes * 3 // 4], power=power)
    assert tally.wrong == []
    assert tally.stopped >= 1  # how many changes there are depends on how the journal's groups fall


def test_the_harness_sees_what_is_wrong(scene: harness.Scene) -> None:
    scene.clear()
    scene.run({})
    weights = next(scene.out.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"differs in ['{weights.name}']" in str(scene.fault())
    weights.write_bytes(whole)
    assert scene.fault() is None
    (scene.home / "out.partial").mkdir()
    assert scene.left_over() == "left ['out', 'out.partial']"
    for name in ("config.json", "model.safetensors"):
        (scene.home / "out.partial" / name).write_text("{}")
    assert scene.fault() == "out.partial would load"


@pytest.mark.parametrize("fault", injected.FAULTS, ids=lambda fault: fault.name)
def test_injected(fault: injected.Fault, tmp_path: Path) -> None:
    tally = injected.suffer(fault, tmp_path, 4, seed=2)
    assert tally.wrong == []
    assert (tally.stopped == 0) if fault.ends == "finishes" else (tally.stopped > 0), tally


@pytest.mark.parametrize("name", injected.LINES)
def test_bad_line_to_the_hub(name: str, tmp_path: Path) -> None:
    tally = injected.bad_line(injected.LINES[name], tmp_path)
    assert (tally.wrong, tally.finished) == ([], 1)
