"""The commands and what they print; mergekit's command line; and what is loaded to show a help page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from cuvee import __version__
from cuvee.cli import mergekit_yaml
from cuvee.methods.registry import get_method, method_names
from cuvee.planning.ops import plan_from_json
from support.tiny_models import Family, load_checkpoint, recipe

COMMANDS = ("merge", "plan", "layout", "methods", "demo")
TEXT = """\
merge_method: ties
base_model: "@base"
models:
  - model: "@a"
    parameters: {weight: 0.75, density: [0.2, 0.6, 0.4]}
  - model: "@b"
    parameters: {weight: 0.5}
dtype: bfloat16
"""
# Every option of mergekit-yaml 0.1.5, booleans in both forms.
FLAGS = (
    "allow-crimes", "unsafe-truncate-embeddings", "low-cpu-memory", "copy-tokenizer", "clone-tensors",
    "trust-remote-code", "lazy-unpickle", "write-model-card", "safe-serialization", "quiet", "read-to-gpu",
    "async-write",
)  # fmt: skip
GPU_FLAGS = ("cuda", "multi-gpu", "gpu-rich")
VALUES = (
    ("--transformers-cache", "cache"), ("--lora-merge-cache", "cache"), ("--lora-merge-dtype", "float32"),
    ("--device", "cpu"), ("--out-shard-size", "20k"), ("--out-shard-size", "5B"), ("--random-seed", "7"),
    ("--num-threads", "1"), ("-j", "2"), ("--write-threads", "2"), ("-v",), ("--verbose",),
)  # fmt: skip
OPTIONS = [
    *VALUES,
    *((f"--{form}{flag}",) for flag in FLAGS for form in ("", "no-")),
    *((f"--no-{flag}",) for flag in GPU_FLAGS),
]
WITHOUT_EFFECT = ("--low-cpu-memory", "--clone-tensors", "--lazy-unpickle", "--read-to-gpu", "--async-write")


@pytest.fixture
def ready(llama: Family, here: Path) -> Path:
    """A directory with a recipe that works."""
    (here / "recipe.yml").write_text(recipe(TEXT, llama))
    return here


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, cuvee: Any) -> None:
    said = cuvee(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: cuvee {command}")
    assert cuvee(command, "-h").out == said.out


def test_help_lists_every_command(cuvee: Any) -> None:
    said = cuvee("--help")
    assert said.code == 0
    listed = [line.split()[0] for line in said.out.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(listed)
    assert "cuvee merge recipe.yml out" in said.out


def test_version(cuvee: Any) -> None:
    said = cuvee("--version")
    assert (said.code, said.out.split()[-1]) == (0, __version__)


def test_methods_lists_all(cuvee: Any) -> None:
    said = cuvee("methods")
    assert (said.code, said.err) == (0, "")
    first_words = {line.split()[0] for line in said.out.splitlines() if line.strip()}
    assert set(method_names()) <= first_words
    assert {"linear", "passthrough", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"} <= set(
        method_names()
    )


@pytest.mark.parametrize("name", method_names())
def test_methods_explains_each(name: str, cuvee: Any) -> None:
    said = cuvee("methods", name)
    assert (said.code, said.err) == (0, "")
    spec = get_method(name)
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    for parameter in spec.parameters.values():
        assert ("required" in rows[parameter.name]) == parameter.required
    assert f"merge_method: {name}" in said.out


@pytest.mark.parametrize("name", method_names())
def test_the_recipe_that_methods_shows_is_accepted(name: str, cuvee: Any, llama: Family, here: Path) -> None:
    shown = cuvee("methods", name).out.split("Recipe:\n")[1]
    for hub_id, model in {"org/base": "base", "org/model-1": "a", "org/model-2": "b"}.items():
        shown = shown.replace(hub_id, str(llama.path(model)))
    (here / "recipe.yml").write_text(shown)
    said = cuvee("merge", "recipe.yml", "out", "--strict")
    assert said.code == 0, said.err


def test_methods_as_json(cuvee: Any) -> None:
    listed = json.loads(cuvee("methods", "--json").out)
    assert [entry["name"] for entry in listed] == list(method_names())
    (ties,) = json.loads(cuvee("methods", "ties", "--json").out)
    parameters = {entry["name"]: entry for entry in ties["parameters"]}
    assert (ties["base"], ties["min_models"], ties["max_models"]) == ("required", 1, None)
    assert (parameters["weight"]["per_model"], parameters["weight"]["required"]) == (True, True)
    assert (parameters["density"]["default"], parameters["normalize"]["default"]) == (1.0, True)
    assert parameters["lambda"]["type"] == "float"


def test_plan_for_people(cuvee: Any, ready: Path, llama: Family) -> None:
    said = cuvee("plan", "recipe.yml")
    assert said.code == 0
    for model in ("base", "a", "b"):
        assert str(llama.path(model)) in said.out
    elements = sum(tensor.size for tensor in llama.state("a").values())
    assert f"reads        {elements * 12 / 1000:.1f} kB" in said.out
    assert "30 tensors" in said.out
    assert "bfloat16" in said.out
    assert "(0.2, 1.0)" in said.out  # density outside the layers: the gradient's start, and the default
    assert [path.name for path in ready.iterdir()] == ["recipe.yml"]
    with_ops = cuvee("plan", "recipe.yml", "--ops").out
    assert "model.layers.2.self_attn.o_proj.weight" in with_ops
    assert "model.layers.2.self_attn.o_proj.weight" not in said.out


def test_plan_tells_of_an_output_that_is_an_input(cuvee: Any, ready: Path, llama: Family) -> None:
    for out, times in ((llama.path("b"), 1), (llama.folder, 1), ("out", 0)):
        said = cuvee("plan", "recipe.yml", str(out), "--no-probe")
        assert (said.code, said.err.count("is an input of this recipe")) == (0, times)
    link = ready / "link"
    link.symlink_to(llama.path("a"))
    assert "is an input of this recipe" in cuvee("plan", "recipe.yml", "link", "--no-probe").err


def test_plan_as_json(cuvee: Any, ready: Path, llama: Family) -> None:
    said = cuvee("plan", "recipe.yml", "--json")
    assert (said.code, said.err) == (0, "")
    data = json.loads(said.out)
    assert {op["name"] for op in data["ops"]} == set(llama.state("a"))
    op = next(op for op in data["ops"] if op["name"] == "model.layers.1.mlp.up_proj.weight")
    assert (op["dtype"], op["shape"], op["method"]) == ("BF16", [32, 16], "ties")
    assert op["parameters"]["density"] == [pytest.approx(0.6), 1.0]
    assert op["sources"][0]["file"] == str(llama.path("base") / "model.safetensors")
    planned = plan_from_json(said.out)
    assert json.loads(cuvee("plan", "recipe.yml", "--json").out) == data
    assert planned.models[planned.base].name == str(llama.path("base"))


def test_merge_reports(cuvee: Any, ready: Path) -> None:
    said = cuvee("merge", "recipe.yml", "out")
    assert said.code == 0
    assert "out: 30 tensors merged, 0 copied" in said.out
    for part in ("read ", "wrote ", " in ", "peak memory"):
        assert part in said.out
    assert "warning: code was not copied: modeling_custom.py" in said.err
    assert load_checkpoint(ready / "out").keys()


def test_quiet_prints_nothing(cuvee: Any, ready: Path) -> None:
    said = cuvee("merge", "recipe.yml", "out", "--quiet", "--trust-remote-code")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert (ready / "out" / "config.json").exists()


def test_verbose_names_every_tensor_once(cuvee: Any, ready: Path, llama: Family) -> None:
    said = cuvee("merge", "recipe.yml", "out", "-v", "--trust-remote-code")
    assert said.code == 0
    assert Counter(said.err.split()) == Counter(list(llama.state("a")))


def test_overwrite(cuvee: Any, ready: Path) -> None:
    assert cuvee("merge", "recipe.yml", "out").code == 0
    (ready / "out" / "old.txt").touch()
    assert cuvee("merge", "recipe.yml", "out").code == 2
    assert (ready / "out" / "old.txt").exists()
    assert cuvee("merge", "recipe.yml", "out", "--overwrite").code == 0
    assert not (ready / "out" / "old.txt").exists()


def run_mergekit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["mergekit-yaml", *arguments])
    with pytest.raises(SystemExit) as end:
        mergekit_yaml()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_mergekit_options_are_accepted(
    options: tuple[str, ...], ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, errors = run_mergekit(monkeypatch, capsys, "recipe.yml", "out", *options)
    assert code == 0, errors
    assert (ready / "out" / "config.json").is_file()
    assert ("no longer mean" in errors) == (
        options[0] in {*WITHOUT_EFFECT, "--write-threads", "--lora-merge-cache", "--lora-merge-dtype"}
    )


@pytest.mark.parametrize("flag", GPU_FLAGS)
def test_mergekit_gpu_options_ask_for_a_gpu(
    flag: str, ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cuvee.engine import devices

    monkeypatch.setattr(devices, "_count", lambda torch, kind: 0)
    code, errors = run_mergekit(monkeypatch, capsys, "recipe.yml", "out", f"--{flag}")
    assert code == 2
    assert "'cuda' is not there" in errors
    assert [path.name for path in ready.iterdir()] == ["recipe.yml"]


def test_options_without_effect_are_named_once(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, errors = run_mergekit(monkeypatch, capsys, "recipe.yml", "out", *WITHOUT_EFFECT)
    (note,) = [line for line in errors.splitlines() if "no longer mean" in line]
    assert all(note.count(option) == 1 for option in WITHOUT_EFFECT)


def test_console_scripts() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts") if "cuvee" in script.value}
    assert scripts["cuvee"] == "cuvee.cli:main"
    assert scripts["mergekit-yaml"] == "cuvee.cli:mergekit_yaml"


SHOW_HELP = """
import sys
from cuvee.cli import _run
try:
    _run(sys.argv[1:], "cuvee")
except SystemExit as end:
    assert end.code == 0
slow = {"numpy", "torch", "pydantic", "rich", "yaml", "huggingface_hub", "transformers", "tokenizers", "ml_dtypes"}
print("loaded:", sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["merge", "--help"], ["plan", "--help"], ["--version"]])
def test_help_loads_nothing_slow(arguments: list[str]) -> None:
    command = [sys.executable, "-c", SHOW_HELP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_reader_that_has_seen_enough(ready: Path) -> None:
    command = f"{sys.executable} -m cuvee plan recipe.yml --ops | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
