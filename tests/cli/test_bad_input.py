"""Bad input: one clear error that names the place and the cure, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cuvee.tensors import disk
from support.tiny_models import Family, llama_state, make_llama, recipe, save_llama

GOOD = """\
merge_method: linear
models:
  - model: "@a"
    parameters:
      weight: 0.5
  - model: "@b"
    parameters:
      weight: 0.5
"""


def refused(said: Any, here: Path, *parts: str, inputs: tuple[str, ...] = ("recipe.yml",)) -> None:
    """Checks that a command was refused as the house promises, in words that include `parts`."""
    assert said.code == 2, said
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert len(said.err) < 2000
    for part in parts:
        assert part in said.err, said.err
    assert sorted(path.name for path in here.iterdir()) == sorted(inputs)


def change(text: str) -> Callable[[str], str]:
    old, new = text.split(" => ")
    return lambda good: good.replace(old.replace("\\n", "\n"), new.replace("\\n", "\n"), 1)


# What is done to the good recipe -> what the error must say.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown method": ("linear => dare-ties", ("unknown merge method 'dare-ties'", "dare_ties", "recipe.yml:1")),
    "misspelt method": ("linear => liner", ("unknown merge method 'liner'", "did you mean 'linear'", "recipe.yml:1")),
    "no method": ("merge_method: linear\n => ", ("no merge method", "merge_method", "linear")),
    "misspelt key for the method": ("merge_method => merge_metod", ("merge_metod", "recipe.yml:1", "merge_method")),
    "missing weight": (
        "    parameters:\n      weight: 0.5\n  - => \n  -",
        ("/a has no weight", "recipe.yml:3", "add `parameters: {weight: ...}`"),
    ),
    "misspelt weight": ("weight => wieght", ("/a has no weight", "recipe.yml:5", "wieght", "did you mean weight?")),
    "weight beside parameters": (
        "    parameters:\n      weight: 0.5\n  - =>     parameters:\n    weight: 0.5\n  -",
        ("/a has no weight", "recipe.yml:5", "beside `parameters`", "indent it below `parameters:`"),
    ),
    "weight is a word": ("0.5 => half", ("weight must be a number", "'half'", "recipe.yml:5")),
    "weights that cancel": (
        "0.5 => -0.5",
        ("the weights add up to nothing", "-0.5, 0.5", "recipe.yml:1", "normalize: false"),
    ),
    "della beyond its bounds": (
        'linear\n => della\nparameters: {density: 0.9}\nbase_model: "@base"\n',
        ("density - epsilon", "density 0.9 and epsilon 0.15", "recipe.yml:1", "della"),
    ),
    "weight is not finite": ("0.5 => .inf", ("not a finite number", "recipe.yml:5")),
    "slerp with three models": (
        'linear\n => slerp\nparameters: {t: 0.5}\nbase_model: "@base"\n',
        ("slerp cannot merge 2 models", "exactly 1 model", "/base", "recipe.yml:4"),
    ),
    "passthrough with two models": (
        "linear => passthrough",
        ("passthrough", "2 models", "exactly 1 model", "recipe.yml:2"),
    ),
    "base not given": ("linear => ties", ("ties needs a base model", "base_model", "recipe.yml:1")),
    "slerp without t": ('linear\n => slerp\nbase_model: "@a"\n', ("slerp needs the parameter t", "recipe.yml:1")),
    "models and slices": (
        "models: => slices: [{sources: [{model: x, layer_range: [0, 1]}]}]\nmodels:",
        ("has both models and slices", "recipe.yml:2", "probably meant", "merge_method: linear"),
    ),
    "neither models nor slices": ("models: => model:", ("says nothing about what to merge", "recipe.yml", "models")),
    "unknown dtype": ("models: => dtype: bfloat61\nmodels:", ("bfloat61", "bfloat16", "recipe.yml:2")),
    "integer dtype": ("models: => dtype: int64\nmodels:", ("int64", "recipe.yml:2")),
    "unknown out_dtype": ("models: => out_dtype: fp8\nmodels:", ("fp8", "recipe.yml:2")),
    "key given twice": (
        "models: => merge_method: ties\nmodels:",
        ("'merge_method' is given twice", "lines 1 and 2", "recipe.yml:2"),
    ),
    "weight given twice": (
        "weight: 0.5 => weight: 0.5\n      weight: 0.7",
        ("'weight' is given twice", "recipe.yml:6"),
    ),
    "tab": ("    parameters => \tparameters", ("not YAML", "recipe.yml:4", "spaces, not tabs")),
    "unbalanced": ("weight: 0.5 => weight: [0.5", ("not YAML", "recipe.yml")),
    "crooked": ("    parameters =>    parameters", ("not YAML", "recipe.yml:4", "indentation")),
    "python tag": ("0.5 => !!python/object/apply:os.system [touch pwned]", ("!!python", "recipe.yml:5")),
    "entry without a model": ('- model: "@a"\n    => - ', ("an entry names no model", "recipe.yml:3")),
    "models is a word": ("models: => models: x\nother:", ("models", "recipe.yml:2")),
    "no such model": ("@a => ./nowhere", ("no checkpoint at", "nowhere")),
    "no such adapter": ('"@a" => "@a+./adapter"', ("no checkpoint at", "adapter")),
    "a model for an adapter": ('"@a" => "@a+@b"', ("is not an adapter", "adapter_config.json")),
    "only without base": ("models: => only: [mlp]\nmodels:", ("only", "base_model", "recipe.yml:2")),
    "only without a tensor": (
        'models: => only: [mpl]\nbase_model: "@a"\nmodels:',
        ("`only` chooses nothing", "'mpl'", "recipe.yml:2"),
    ),
    "tokenizer twice": (
        "models: => tokenizer_source: union\ntokenizer: {source: union}\nmodels:",
        ("both tokenizer and tokenizer_source", "recipe.yml:2"),
    ),
}


@pytest.mark.parametrize("command", ["merge", "plan"])
@pytest.mark.parametrize("case", RECIPES)
def test_recipe(case: str, command: str, cuvee: Any, llama: Family, here: Path) -> None:
    edit, parts = RECIPES[case]
    changed = change(edit)(GOOD)
    assert changed != GOOD
    (here / "recipe.yml").write_text(recipe(changed, llama))
    refused(cuvee(command, "recipe.yml", "out"), here, *parts)


def test_the_good_recipe_is_good(cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    assert cuvee("merge", "recipe.yml", "out").code == 0


SLICES = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources:
      - {model: "@a", layer_range: FIRST}
      - {model: "@b", layer_range: SECOND}
"""


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ("[0, 2]", "[0, 3]", ("different numbers of layers", "2 layers", "recipe.yml:6")),
        ("[0, 9]", "[0, 9]", ("[0, 9]", "/a", "[0, 3]")),
        ("[2, 3]", "[3, 4]", ("[3, 4]", "/b", "[0, 3]")),
        ("[2, 1]", "[0, 1]", ("layer_range", "recipe.yml:5")),
        ("[-1, 2]", "[0, 3]", ("layer_range", "recipe.yml:5")),
        ("[0, 1.5]", "[0, 1]", ("layer_range", "recipe.yml:5")),
        ("[0]", "[0]", ("layer_range", "recipe.yml:5")),
        ("all", "all", ("layer_range", "recipe.yml:5")),
        ("[1, 1]", "[1, 1]", ("layer_range", "recipe.yml:5")),
    ],
)
def test_layer_ranges(first: str, second: str, parts: tuple[str, ...], cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(SLICES.replace("FIRST", first).replace("SECOND", second), llama))
    refused(cuvee("merge", "recipe.yml", "out"), here, *parts)


def test_alias_bomb(cuvee: Any, here: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (here / "recipe.yml").write_text("\n".join([*lines, GOOD]))
    refused(cuvee("merge", "recipe.yml", "out"), here, "aliases", "recipe.yml:")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("empty",)),
        (b"# only a comment\n", ("empty",)),
        (b"just words", ("recipe.yml",)),
        (b"- a\n- list\n", ("merge_method", "recipe.yml:1")),
        (b"\xff\xfe\x00m", ("UTF-8", "recipe.yml:1")),
        (b"a: b: c\n", ("not YAML", "recipe.yml:1")),
        (b"[" * 5000, ("nests deeper", "recipe.yml:1")),
        (b"merge_method: \x00\n", ("recipe.yml",)),
        (b"PK\x03\x04\x00\x00zip", ("recipe.yml",)),
    ],
)
def test_files_that_are_no_recipe(content: bytes, parts: tuple[str, ...], cuvee: Any, here: Path) -> None:
    (here / "recipe.yml").write_bytes(content)
    refused(cuvee("merge", "recipe.yml", "out"), here, *parts)


def test_recipe_that_is_not_there(cuvee: Any, here: Path) -> None:
    (here / "recipe.yml").write_text(GOOD)
    refused(cuvee("merge", "recipy.yml", "out"), here, "no such recipe file", "recipy.yml", "did you mean recipe.yml?")
    refused(cuvee("merge", "nowhere/recipe.yml", "out"), here, "no such recipe file", "no directory nowhere")


def test_directory_as_recipe(cuvee: Any, here: Path) -> None:
    (here / "folder").mkdir()
    (here / "folder" / "my.yaml").write_text(GOOD)
    refused(cuvee("merge", "folder", "out"), here, "is a directory", "did you mean folder/my.yaml?", inputs=("folder",))


def two_models(here: Path) -> Family:
    """Two models that a test may damage, and a recipe that merges them."""
    family = make_llama(here.parent / "family", names=("a", "b"))
    (here / "recipe.yml").write_text(recipe(GOOD, family))
    return family


def rewrite(folder: Path, **changed: np.ndarray[Any, Any] | None) -> None:
    """Replaces tensors of a model, or drops those given as None."""
    file = folder / "model.safetensors"
    state: dict[str, Any] = {**load_file(file), **changed}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, file)


def test_shapes_that_differ(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(family.path("b"), **{name: np.zeros((32, 8), np.float32)})
    refused(cuvee("merge", "recipe.yml", "out"), here, name, "[32, 16]", "family/a", "[32, 8]", "family/b")


def test_vocabularies_that_differ(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    rewrite(family.path("b"), **{"model.embed_tokens.weight": np.zeros((130, 16), np.float32)})
    refused(
        cuvee("merge", "recipe.yml", "out"), here, "model.embed_tokens.weight", "[128, 16]", "[130, 16]",
        "tokenizer: {source: base}", "--unsafe-truncate-embeddings",
    )  # fmt: skip


def test_tensors_that_differ(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    rewrite(family.path("b"), **{"model.norm.weight": None})
    refused(
        cuvee("merge", "recipe.yml", "out"),
        here,
        "do not hold the same tensors",
        "family/b lacks 1",
        "model.norm.weight",
    )


def test_architectures_that_differ(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    config = family.path("b") / "config.json"
    text = config.read_text().replace("LlamaForCausalLM", "MistralForCausalLM")
    config.write_text(text.replace('"model_type": "llama"', '"model_type": "mistral"'))
    refused(cuvee("merge", "recipe.yml", "out"), here, "LlamaForCausalLM", "MistralForCausalLM", "--allow-crimes")
    assert cuvee("merge", "recipe.yml", "out", "--allow-crimes").code == 0


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda data: data[:-10], ("cut short", "fetch it again")),
        (lambda data: data[:100], ("header does not fit",)),
        (lambda data: b"", ("too short",)),
        (lambda data: data + b"more", ("longer than its tensors",)),
        (lambda data: b"\xff" * 8 + data[8:], ("header does not fit",)),
        (lambda data: data[:8] + b"?" + data[9:], ("not JSON",)),
        (lambda data: b"<html>Not found</html>" * 40, ("header does not fit",)),
        (lambda data: data.replace(b'"F32"', b'"F33"', 1), ("F33",)),
        (lambda data: data.replace(b"[128,16]", b"[128,17]", 1), ("bytes do not match its shape",)),
    ],
)
def test_damaged_safetensors(damage: Callable[[bytes], bytes], parts: tuple[str, ...], cuvee: Any, here: Path) -> None:
    family = two_models(here)
    file = family.path("b") / "model.safetensors"
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    refused(cuvee("merge", "recipe.yml", "out"), here, "model.safetensors", "family/b", *parts)


def test_not_a_checkpoint(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    (family.path("b") / "model.safetensors").unlink()
    refused(cuvee("merge", "recipe.yml", "out"), here, "family/b holds no weights", "*.safetensors", "config.json")
    (here / "recipe.yml").write_text(recipe(GOOD.replace("@a", "recipe.yml"), family))
    refused(cuvee("merge", "recipe.yml", "out"), here, "no checkpoint at recipe.yml", "a file", "a directory")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xff", b"null"])
def test_damaged_config(content: bytes, cuvee: Any, here: Path) -> None:
    family = two_models(here)
    (family.path("a") / "config.json").write_bytes(content)
    refused(cuvee("merge", "recipe.yml", "out"), here, "config.json", "family/a", "JSON")


@pytest.mark.parametrize(
    ("weight_map", "parts"),
    [
        ({"x": "../../secret.safetensors"}, ("outside the checkpoint", "../../secret.safetensors")),
        ({"x": "/etc/passwd"}, ("outside the checkpoint", "/etc/passwd")),
        ({"x": "model-00002.safetensors"}, ("missing", "model-00002.safetensors")),
        ({"x": "model.safetensors"}, ("does not tell the truth",)),
    ],
)
def test_index_that_lies(weight_map: dict[str, str], parts: tuple[str, ...], cuvee: Any, here: Path) -> None:
    family = two_models(here)
    (family.path("b") / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(cuvee("merge", "recipe.yml", "out"), here, "model.safetensors.index.json", "family/b", *parts)


class _Code:
    """Unpickling this runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_pickle_that_holds_code(cuvee: Any, here: Path) -> None:
    import torch

    family = two_models(here)
    (family.path("b") / "model.safetensors").unlink()
    file = family.path("b") / "pytorch_model.bin"
    torch.save({"w": torch.zeros(2), "code": _Code()}, file)
    refused(cuvee("merge", "recipe.yml", "out"), here, "pytorch_model.bin", "family/b")
    file.write_bytes(pickle.dumps(_Code()))
    refused(cuvee("merge", "recipe.yml", "out"), here, "pytorch_model.bin", "family/b")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_weights_that_are_not_finite(method: str, bad: float, cuvee: Any, here: Path) -> None:
    family = two_models(here)
    tensor = llama_state()["model.layers.2.self_attn.k_proj.weight"].copy()
    tensor[3, 5] = bad
    rewrite(family.path("b"), **{"model.layers.2.self_attn.k_proj.weight": tensor})
    head = f'merge_method: {method}\nparameters: {{t: 0.5, density: 0.5}}\nbase_model: "@a"\n'
    (here / "recipe.yml").write_text(recipe(GOOD.replace("merge_method: linear\n", head), family))
    parts = ("model.layers.2.self_attn.k_proj.weight", "family/b", "not finite", "the first at 53", "--allow-nonfinite")
    said = cuvee("merge", "recipe.yml", "out")
    refused(said, here, *parts, "of 30 tensors", inputs=("out.partial", "recipe.yml"))
    assert said.err.endswith("  continue: cuvee merge recipe.yml out --allow-nonfinite\n")
    went_on = cuvee("merge", "recipe.yml", "out", "--allow-nonfinite")
    assert (went_on.code, went_on.err[:9]) == (0, "going on:")
    assert sorted(path.name for path in here.iterdir()) == ["out", "recipe.yml"]
    # What was done before is what would have been done in one go.
    assert cuvee("merge", "recipe.yml", "whole", "--allow-nonfinite").code == 0
    weights = "model.safetensors"
    assert (here / "out" / weights).read_bytes() == (here / "whole" / weights).read_bytes()


def test_result_that_does_not_fit_its_dtype(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    rewrite(family.path("a"), **{"model.norm.weight": np.full(16, 1e5, np.float32)})
    (here / "recipe.yml").write_text(recipe(GOOD + "out_dtype: float16\nparameters: {normalize: false}\n", family))
    rewrite(family.path("b"), **{"model.norm.weight": np.full(16, 1e5, np.float32)})
    kept = ("out.partial", "recipe.yml")
    refused(cuvee("merge", "recipe.yml", "out"), here, "model.norm.weight", "65504", "bfloat16", inputs=kept)


def test_not_enough_disk(cuvee: Any, llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10_000)
    refused(cuvee("merge", "recipe.yml", "out"), here, "not enough disk space for out", "GB free")


@pytest.mark.parametrize(
    ("out", "parts"),
    [
        ("recipe.yml", ("recipe.yml is a file", "choose another output")),
        ("recipe.yml/out", ("recipe.yml",)),
        ("/proc/cuvee/out", ("/proc",)),
        ("taken", ("exists already", "--overwrite")),
        ("", ()),
        ("x" * 300, ("name too long",)),
    ],
)
def test_unwritable_output(out: str, parts: tuple[str, ...], cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").write_text("mine")
    said = cuvee("merge", "recipe.yml", out)
    refused(said, here, inputs=("recipe.yml", "taken"))
    for part in parts:
        assert part.lower() in said.err.lower()


@pytest.mark.parametrize("out", [".", "..", "/", "recipe.yml"])
def test_overwriting_what_is_no_output_is_refused(out: str, cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    refused(cuvee("merge", "recipe.yml", out, "--overwrite"), here)


def test_directory_without_permission(cuvee: Any, llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    (here / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != here / "locked")  # root may write anywhere
    said = cuvee("merge", "recipe.yml", "locked/deep/out")
    refused(said, here, "cannot write into", "locked", inputs=("locked", "recipe.yml"))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--device", "cuda:97"), ("cuda:97", "not there", "--device cpu")),
        (("--device", "gpu"), ("unknown device 'gpu'", "cuda")),
        (("--out-shard-size", "five"), ("'five' is not a size", "5B")),
        (("--out-shard-size", "0"), ("is not a size",)),
        (("--memory", "-1GiB"), ("is not a size",)),
        (("--memory", "1KiB"), ("memory", "--memory")),
        (("--threads", "-3"), ("threads",)),
        (("--processes", "-1"), ("processes",)),
    ],
)
def test_option_values(options: tuple[str, ...], parts: tuple[str, ...], cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD, llama))
    said = cuvee("merge", "recipe.yml", "out", *options)
    assert said.code == 2
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.err
    assert sorted(path.name for path in here.iterdir()) == ["recipe.yml"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("merge",), "Missing argument 'RECIPE'"),
        (("merge", "recipe.yml"), "Missing argument 'OUT'"),
        (("merge", "recipe.yml", "out", "--overwite"), "--overwrite"),
        (("merge", "recipe.yml", "out", "--threads", "two"), "'two' is not a valid integer"),
        (("merg", "recipe.yml", "out"), "merg"),
        (("merge", "recipe.yml", "out", "more"), "unexpected extra argument"),
    ],
)
def test_command_lines(arguments: tuple[str, ...], part: str, cuvee: Any, here: Path) -> None:
    said = cuvee(*arguments)
    assert said.code == 2
    assert part in said.err
    assert "Traceback" not in said.err
    assert list(here.iterdir()) == []


def test_unknown_keys_warn_and_strict_refuses(cuvee: Any, llama: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(GOOD + "dtpye: float16\n", llama))
    refused(cuvee("merge", "recipe.yml", "out", "--strict"), here, "dtpye", "recipe.yml:9", "did you mean dtype?")
    said = cuvee("merge", "recipe.yml", "out")
    assert said.code == 0
    assert "warning: recipe.yml:9 (dtpye): unknown key 'dtpye'; did you mean dtype?" in said.err


def test_unknown_method_name(cuvee: Any, here: Path) -> None:
    refused(cuvee("methods", "slurp"), here, "unknown merge method 'slurp'", "did you mean 'slerp'?", inputs=())


@pytest.mark.parametrize("case", ["unknown method", "no such model", "key given twice"])
def test_in_a_process_of_its_own(case: str, llama: Family, here: Path) -> None:
    edit, parts = RECIPES[case]
    (here / "recipe.yml").write_text(recipe(change(edit)(GOOD), llama))
    command = [sys.executable, "-m", "cuvee", "merge", "recipe.yml", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for part in parts:
        assert part in done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["recipe.yml"]


def test_quantised_checkpoints(cuvee: Any, here: Path) -> None:
    family = two_models(here)
    config = json.loads((family.path("b") / "config.json").read_text())
    (family.path("b") / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    refused(cuvee("merge", "recipe.yml", "out"), here, "family/b is quantised", "quantization_config")


def test_a_tokenizer_that_is_none(cuvee: Any, here: Path) -> None:
    save_llama(here.parent / "family" / "a", llama_state())
    save_llama(here.parent / "family" / "b", llama_state(seed=3))
    family = Family("llama", here.parent / "family", np.dtype(np.float32))
    (family.path("b") / "tokenizer.json").write_text("{}")
    (here / "recipe.yml").write_text(recipe(GOOD + "tokenizer: {source: union}\n", family))
    refused(cuvee("merge", "recipe.yml", "out"), here, "tokenizer.json of", "is not a tokenizer", "family/b")
