"""`--memory` is kept: what all threads and processes of a merge take together, as the kernel counts it, stays below."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cuvee
from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from support.checkpoints import write_checkpoint
from support.tiny_models import BFLOAT16

MiB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models of 24 million parameters, most of them in one tensor: larger than the budget all together."""
    made = tmp_path_factory.mktemp("large")
    for name in ("base", "a", "b", "c"):
        random = np.random.default_rng(len(name) + ord(name[0]))
        shapes = {"model.layers.0.w.weight": (2048, 8192), "model.layers.1.w.weight": (1024, 8192)}
        state = {key: random.standard_normal(shape, np.float32).astype(BFLOAT16) for key, shape in shapes.items()}
        write_checkpoint(made / name, state, {"architectures": ["X"]})
    return made


def recipe(folder: Path, method: str) -> dict[str, object]:
    if method in ("sce", "arcee_fusion"):
        models: list[dict[str, object]] = [{"model": str(folder / name)} for name in ("ab" if method == "sce" else "a")]
        more: dict[str, object] = {"parameters": {"select_topk": 0.5}} if method == "sce" else {}
        return {"merge_method": method, "base_model": str(folder / "base"), "models": models, **more}
    parameters = {"weight": 0.3} | ({} if method in ("linear", "task_arithmetic") else {"density": 0.5})
    models = [{"model": str(folder / name), "parameters": parameters} for name in "abc"]
    base = {} if method == "linear" else {"base_model": str(folder / "base")}
    return {"merge_method": method, "models": models, **base}


def peak_anonymous(command: list[str]) -> int:
    """The most anonymous memory that a process and its children held at any of many moments, in bytes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(anonymous, family_of(process.pid))))
            time.sleep(0.003)
        assert process.returncode == 0, process.communicate()[1].decode()
    return peak


def family_of(process: int) -> list[int]:
    found = [process]
    for number in found:
        try:
            tasks = Path(f"/proc/{number}/task").iterdir()
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@pytest.mark.parametrize(
    ("method", "options", "budget"),
    [
        ("linear", ("-j", "8", "--processes", "1"), 48),
        ("ties", ("-j", "8", "--processes", "1"), 96),
        ("dare_ties", ("-j", "8", "--processes", "1"), 96),
        ("della", ("-j", "2", "--processes", "1"), 96),
        ("ties", ("-j", "2", "--processes", "2"), 192),
    ],
)
def test_memory_stays_below_the_budget(
    method: str, options: tuple[str, ...], budget: int, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe(folder, method)))
    command = [sys.executable, "-m", "cuvee", "merge", "--quiet", str(tmp_path / "recipe.yml"), str(tmp_path / "out")]
    peak = peak_anonymous([*command, "--memory", f"{budget}MiB", *options])
    assert 10 * MiB < peak <= budget * MiB, f"{peak / MiB:.0f} MiB"


def test_the_budget_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    found = []
    for memory in ("96MiB", "4GiB"):
        out = tmp_path / memory
        cuvee.merge(recipe(folder, "ties"), out, MergeOptions(memory=memory, threads=2, processes=1))
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_recipe_that_cannot_fit_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="4 models at once do not fit the memory budget") as caught:
        cuvee.merge(recipe(folder, "ties"), tmp_path / "out", MergeOptions(memory="40MiB"))
    assert "ties holds" in str(caught.value.expected)
    assert not list(tmp_path.iterdir())
    needed = caught.value.fix.split("--memory to ")[1].split()[0]
    cuvee.merge(recipe(folder, "ties"), tmp_path / "out", MergeOptions(memory=needed, threads=1, processes=1))


@pytest.mark.parametrize("method", ["ties", "sce", "arcee_fusion"])
def test_what_a_refusal_asks_for_is_enough(method: str, folder: Path, tmp_path: Path) -> None:
    """Two of these keep scores of the smaller tensor, which has just as many elements as is still moderate."""
    with pytest.raises(PlanError, match="memory budget") as caught:
        cuvee.merge(recipe(folder, method), tmp_path / "out", MergeOptions(memory="25MiB", processes=1))
    needed = int(caught.value.fix.split("--memory to ")[1].split("MiB")[0])
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe(folder, method)))
    command = [sys.executable, "-m", "cuvee", "merge", "--quiet", str(tmp_path / "recipe.yml"), str(tmp_path / "out")]
    peak = peak_anonymous([*command, "--memory", f"{needed}MiB", "-j", "1", "--processes", "1"])
    assert 10 * MiB < peak <= needed * MiB, f"{peak / MiB:.0f} of {needed} MiB"


def test_whole_rows_need_what_they_are_long(tmp_path: Path) -> None:
    """A method that keeps rows whole cannot cut one of four million elements; one that does not can."""
    for name in ("base", "a"):
        values = np.random.default_rng(ord(name[0])).standard_normal((1, 4 << 20), np.float32)
        write_checkpoint(tmp_path / name, {"w": values}, {})
    models = [{"model": str(tmp_path / "a"), "parameters": {"weight": 1.0, "density": 0.5}}]
    tall = {"base_model": str(tmp_path / "base"), "models": models}
    options = MergeOptions(memory="100MiB", processes=1)
    with pytest.raises(PlanError, match="memory budget") as caught:
        cuvee.merge({"merge_method": "della", **tall}, tmp_path / "della", options)
    assert "della holds whole rows of 2 models" in str(caught.value.expected)
    assert "'w' [1, 4194304]" in str(caught.value.expected)
    cuvee.merge({"merge_method": "ties", **tall}, tmp_path / "ties", options)
