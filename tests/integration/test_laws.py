"""Laws of the whole machine: the same bytes however it runs, memory that does not grow, no torch on the CPU path."""

from __future__ import annotations

import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import cuvee
from cuvee import MergeOptions
from support.tiny_models import BFLOAT16, Family, make_llama, recipe

RECIPES = {
    "linear": 'merge_method: linear\nmodels: [{model: "@base"}, {model: "@a"}]\nparameters: {weight: 0.3}\n',
    "slerp": 'merge_method: slerp\nbase_model: "@base"\nmodels: [{model: "@a"}]\nparameters: {t: [0.2, 0.8]}\n',
    **{
        method: f'merge_method: {method}\nbase_model: "@base"\nmodels: [{{model: "@a"}}, {{model: "@b"}}]\n'
        "parameters: {weight: 0.6, density: 0.4, rescale: true}\n"
        for method in ("ties", "dare_ties")
    },
}
MEMORY = """
import sys, cuvee
cuvee.merge(sys.argv[1], sys.argv[2], cuvee.MergeOptions(threads=2))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
MODULES = """
import sys
import cuvee
from cuvee.cli import _run
try:
    _run(sys.argv[1:], "cuvee")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "transformers", "safetensors", "peft", "accelerate", "jinja2", "requests"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Llamas whose embedding spans several blocks and scans."""
    return make_llama(
        tmp_path_factory.mktemp("larger"),
        layers=1,
        hidden=128,
        vocabulary=5000,
        dtype=BFLOAT16,
        names=("base", "a", "b"),
    )


@pytest.mark.parametrize("method", RECIPES)
def test_same_bytes_however_it_runs(method: str, larger: Family, tmp_path: Path) -> None:
    ways = {
        "one thread": MergeOptions(threads=1),
        "two threads": MergeOptions(threads=2),
        "five threads in little memory": MergeOptions(threads=5, memory="40MiB"),
        "two processes": MergeOptions(processes=2, threads=2),
    }
    written = {}
    for way, options in ways.items():
        cuvee.merge(recipe(RECIPES[method], larger), tmp_path / way, options)
        written[way] = (tmp_path / way / "model.safetensors").read_bytes()
    assert {way for way in ways if written[way] != written["one thread"]} == set()


def big_recipe(folder: Path, *, models: int, megabytes: int, tensors: int, method: str) -> Path:
    """Checkpoints of random bfloat16 in so many tensors each, and a recipe that merges them."""
    count = megabytes * 500_000 // tensors
    tile = np.random.default_rng(3).standard_normal(250_000).astype(BFLOAT16)
    for model in range(models):
        (folder / f"m{model}").mkdir(parents=True)
        state = {}
        for number in range(tensors):
            pieces = islice(cycle([np.roll(tile, 7 * model + number)]), -(-count // tile.size))
            state[f"model.layers.{number}.weight"] = np.concatenate(list(pieces))[:count].reshape(-1, 500)
        save_file(state, folder / f"m{model}" / "model.safetensors")
    lines = [f"merge_method: {method}", f"base_model: {folder / 'm0'}", "parameters: {weight: 0.5, density: 0.3}"]
    lines += ["models:", *(f"  - model: {folder / f'm{model}'}" for model in range(models))]
    path = folder / "recipe.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_does_not_grow_with_the_models(method: str, tmp_path: Path) -> None:
    def peak_megabytes(name: str, **size: int) -> float:
        path = big_recipe(tmp_path / name, method=method, **size)
        command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / name / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024

    small = peak_megabytes("small", models=2, megabytes=20, tensors=10)
    assert small < 100
    assert peak_megabytes("layers", models=2, megabytes=80, tensors=40) < small + 6
    assert peak_megabytes("tensors", models=2, megabytes=80, tensors=4) < small + 6
    # A block and its copies for each further model and thread, of 0.5 MB each; the models are 20 MB each.
    assert peak_megabytes("models", models=6, megabytes=20, tensors=10) < small + 40


@pytest.mark.parametrize("command", ["merge", "plan", "methods"])
def test_nothing_heavy_is_imported_on_the_cpu_path(command: str, llama: Family, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(recipe(RECIPES["ties"], llama))
    arguments = {"merge": ["recipe.yml", "out", "--quiet"], "plan": ["recipe.yml"], "methods": ["ties"]}
    done = subprocess.run(
        [sys.executable, "-c", MODULES, command, *arguments[command]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "config.json").exists() == (command == "merge")
