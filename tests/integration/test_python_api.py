"""The Python door: the same merge from a path, text, a mapping and a loaded recipe; plans, reports and progress."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import cuvee
from cuvee.errors import CuveeError, RecipeError
from cuvee.planning.ops import plan_from_json, plan_to_json
from support.tiny_models import Family, load_checkpoint, recipe

TEXT = """
merge_method: task_arithmetic
base_model: "@base"
models:
  - model: "@a"
    parameters: {weight: [0.25, 0.75]}
dtype: bfloat16
"""


class Recorder:
    """Keeps the events of a merge."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.names: Counter[str] = Counter()
        self.bytes = 0
        self.ended = 0
        self.events: list[str] = []
        self._lock = threading.Lock()

    def begin(self, stage: str, total_bytes: int) -> None:
        self.stages.append((stage, total_bytes))

    def advance(self, count: int) -> None:
        with self._lock:
            self.bytes += count

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        with self._lock:
            self.names[name] += 1

    def end(self) -> None:
        self.ended += 1

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        self.events.append(name)


def test_all_kinds_of_recipes_give_the_same_weights(llama: Family, tmp_path: Path) -> None:
    text = recipe(TEXT, llama)
    (tmp_path / "recipe.yml").write_text(text)
    kinds: dict[str, Any] = {
        "text": text,
        "path": tmp_path / "recipe.yml",
        "name": str(tmp_path / "recipe.yml"),
        "mapping": yaml.safe_load(text),
        "recipe": cuvee.load_recipe(text)[0],
    }
    weights = {}
    for kind, given in kinds.items():
        cuvee.merge(given, tmp_path / kind)
        data = (tmp_path / kind / "model.safetensors").read_bytes()
        weights[kind] = data[8 + int.from_bytes(data[:8], "little") :]
        assert yaml.safe_load((tmp_path / kind / "mergekit_config.yml").read_text()) == yaml.safe_load(text)
    assert len(set(weights.values())) == 1


@pytest.mark.parametrize("given", [None, 3, [1], b"merge_method: linear\n"])
def test_what_is_no_recipe_at_all_is_refused(given: Any, tmp_path: Path) -> None:
    for call in (lambda: cuvee.merge(given, tmp_path / "out"), lambda: cuvee.plan(given)):
        with pytest.raises(RecipeError, match=f"a recipe cannot be of type {type(given).__name__}") as caught:
            call()
        assert "a path, YAML text, a mapping" in str(caught.value.expected)
    assert list(tmp_path.iterdir()) == []


def test_options_of_other_types_are_refused() -> None:
    refused: list[tuple[str, Any, str]] = [
        ("threads", "2", "a whole number"),
        ("threads", None, "a whole number"),
        ("threads", True, "a whole number"),
        ("threads", 1.5, "a whole number"),
        ("device", 0, "text or None"),
        ("memory", 1.5, "text or a whole number"),
        ("memory", None, "text or a whole number"),
        ("overwrite", "no", "True or False"),
        ("strict", 1, "True or False"),
        ("transformers_cache", 1, "text or a path or None"),
    ]
    for name, value, expected in refused:
        with pytest.raises(CuveeError, match=f"the option {name} cannot be of type {type(value).__name__}") as caught:
            cuvee.MergeOptions(**{name: value})
        assert caught.value.expected is not None
        assert caught.value.expected.startswith(expected)
        assert caught.value.option == name


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ({}, "cpu"),
        ({"device": "mps"}, "mps"),
        ({"cuda": True}, "cuda"),
        ({"cuda": True, "device": "cuda:1"}, "cuda:1"),
        ({"cuda": True, "device": "auto"}, "auto"),
        ({"multi_gpu": True}, "cuda:all"),
        ({"multi_gpu": True, "device": "cuda"}, "cuda:all"),
        ({"multi_gpu": True, "device": "auto", "cuda": True}, "cuda:all"),
        ({"gpu_rich": True}, "cuda:all"),
    ],
)
def test_short_forms_of_devices(given: Any, devices: str) -> None:
    assert cuvee.MergeOptions(**given).devices == devices


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps", "torch:cpu"])
@pytest.mark.parametrize("short", ["cuda", "multi_gpu", "gpu_rich"])
def test_a_device_that_a_short_form_contradicts_is_refused(device: str, short: str) -> None:
    given: dict[str, Any] = {"device": device, short: True}
    if (device, short) == ("cuda:1", "cuda"):
        assert cuvee.MergeOptions(**given).devices == "cuda:1"
        return
    with pytest.raises(CuveeError, match=f"--device {device} contradicts --{short.replace('_', '-')}"):
        cuvee.MergeOptions(**given)


def test_options_take_what_means_the_same(tmp_path: Path) -> None:
    options = cuvee.MergeOptions(threads=np.int64(2), memory=1 << 20, transformers_cache=tmp_path)
    assert (options.threads, options.memory, options.transformers_cache) == (2, 1 << 20, tmp_path)


def test_plan_tells_what_merge_then_does(llama: Family, tmp_path: Path) -> None:
    planned = cuvee.plan(recipe(TEXT, llama))
    report = cuvee.merge(recipe(TEXT, llama), tmp_path / "out")
    file = tmp_path / "out" / planned.shards[0].name
    assert planned.bytes_written == report.bytes_written == file.stat().st_size
    assert planned.bytes_read == report.bytes_read
    assert file.read_bytes()[8:].startswith(planned.shards[0].header.encode())
    assert sorted(op.name for op in planned.ops) == sorted(llama.state("base"))
    middle = next(op for op in planned.ops if op.name == "model.layers.1.mlp.up_proj.weight")
    assert middle.parameters["weight"] == (0.5,)
    assert (middle.dtype, middle.has_base, middle.method) == ("BF16", True, "task_arithmetic")
    assert plan_from_json(plan_to_json(planned)) == planned


def test_progress_covers_every_tensor_once(llama: Family, tmp_path: Path) -> None:
    for number, options in enumerate((cuvee.MergeOptions(), cuvee.MergeOptions(processes=2))):
        seen = Recorder()
        report = cuvee.merge(recipe(TEXT, llama), tmp_path / str(number), options, seen)
        assert seen.names == Counter(list(llama.state("base")))
        assert [stage for stage, _ in seen.stages] == ["merge"]
        assert seen.ended == 1
        header = int.from_bytes((tmp_path / str(number) / "model.safetensors").read_bytes()[:8], "little") + 8
        assert seen.bytes == report.bytes_written - header


def test_warnings_come_with_the_report(llama: Family, tmp_path: Path) -> None:
    text = recipe(TEXT + "base_modell: x\n", llama)
    report = cuvee.merge(text, tmp_path / "out")
    assert any("base_modell" in warning and "base_model?" in warning for warning in report.warnings)
    with pytest.raises(RecipeError, match="base_modell") as caught:
        cuvee.merge(text, tmp_path / "strict", cuvee.MergeOptions(strict=True))
    assert caught.value.line == 8
    assert isinstance(caught.value, CuveeError)
    assert not (tmp_path / "strict").exists()


def test_inputs_are_left_as_they_are(llama: Family, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in llama.folder.rglob("*") if path.is_file()}
    cuvee.merge(recipe(TEXT, llama), tmp_path / "out")
    assert {path: path.read_bytes() for path in llama.folder.rglob("*") if path.is_file()} == before


def test_paths_start_at_the_current_directory(llama: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.folder)
    report = cuvee.merge({"merge_method": "passthrough", "models": [{"model": "./a"}]}, tmp_path / "out")
    assert report.merged == 0
    assert report.copied == len(llama.state("a"))
    monkeypatch.chdir(tmp_path)
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": "out"}]}, "relative")
    assert (tmp_path / "relative" / "config.json").is_file()


def test_torch_on_the_cpu_agrees_within_a_rounding(llama: Family, tmp_path: Path) -> None:
    text = recipe(TEXT.replace("dtype: bfloat16", "dtype: float32"), llama)
    cuvee.merge(text, tmp_path / "numpy")
    cuvee.merge(text, tmp_path / "torch", cuvee.MergeOptions(device="torch:cpu"))
    host, device = load_checkpoint(tmp_path / "numpy"), load_checkpoint(tmp_path / "torch")
    for name, tensor in host.items():
        np.testing.assert_allclose(device[name], tensor, rtol=2e-7, atol=1e-8)


def test_the_public_names_are_seen_before_they_are_used() -> None:
    """They are loaded on first use; completion in a notebook lists what `dir` does."""
    assert set(dir(cuvee)) == set(cuvee.__all__)
    assert all(getattr(cuvee, name) is not None for name in cuvee.__all__)
