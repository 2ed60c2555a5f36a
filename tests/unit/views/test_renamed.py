from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cuvee.errors import PlanError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.views.renamed import renamed
from support.checkpoints import write_checkpoint

NAMES = ("enc.0.q.weight", "enc.1.q.weight", "head.weight")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    tensors = {name: np.full((2, 2), number, np.float32) for number, name in enumerate(NAMES)}
    return open_checkpoint(Directory(write_checkpoint(tmp_path / "m", tensors)), "m")


def test_patterns_follow_one_another(checkpoint: Checkpoint) -> None:
    seen = renamed(checkpoint, ((r"^enc\.(\d+)", r"layers.\1"), (r"layers", "model.layers"), (r"\.q\.", ".query.")))
    assert seen.tensors == {
        "model.layers.0.query.weight": checkpoint.tensors[NAMES[0]],
        "model.layers.1.query.weight": checkpoint.tensors[NAMES[1]],
        "head.weight": checkpoint.tensors[NAMES[2]],
    }
    assert seen.notes == ("m: 2 tensors renamed by the recipe",)
    assert renamed(checkpoint, ()) is checkpoint


def test_names_may_change_places(checkpoint: Checkpoint) -> None:
    swap = ((r"^enc\.0", "enc.x"), (r"^enc\.1", "enc.0"), (r"^enc\.x", "enc.1"))
    seen = renamed(checkpoint, swap)
    assert seen.tensors[NAMES[0]] == checkpoint.tensors[NAMES[1]]
    assert seen.tensors[NAMES[1]] == checkpoint.tensors[NAMES[0]]


def test_a_pattern_that_is_found_nowhere_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlanError, match="found in no tensor name of m") as caught:
        renamed(checkpoint, (("enc", "layers"), ("^enc", "x")))
    assert caught.value.pattern == "^enc"
    assert caught.value.found == "layers.0.q.weight, layers.1.q.weight, head.weight, ..."


def test_two_tensors_of_one_name_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlanError, match=r"two tensors of m the name 'enc\.q\.weight'") as caught:
        renamed(checkpoint, ((r"enc\.\d", "enc"),))
    assert caught.value.found == "enc.0.q.weight and enc.1.q.weight"


def test_a_tensor_without_a_name_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlanError, match=r"leaves 'head.weight' of m without a name"):
        renamed(checkpoint, (("^head.*", ""),))


@pytest.mark.parametrize("pattern", [r"^(\w+\.?)+!$", r"(\w|\w\w)*!", r"((\w?){20}){20}!"])
def test_a_pattern_without_end_is_refused(
    pattern: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.recipe.patterns.SECONDS", 0.5)
    tensors = {"weightweightweightweightweightweightweight.weight": np.ones((2, 2), np.float32)}
    long = open_checkpoint(Directory(write_checkpoint(tmp_path / "long", tensors)), "long")
    with pytest.raises(PlanError, match="cannot be applied") as caught:
        renamed(long, ((pattern, "x"),))
    assert caught.value.pattern == pattern
    assert "0.5 s" in (caught.value.found or "")


def test_patterns_of_many_choices_do_what_python_s_do(checkpoint: Checkpoint) -> None:
    pattern, replacement = r"^(enc|dec)\.(?P<n>\d+)\.(.*)$", r"layers.\g<n>.\3"
    seen = renamed(checkpoint, ((pattern, replacement),))
    assert list(seen.tensors) == [re.sub(pattern, replacement, name) for name in NAMES]
