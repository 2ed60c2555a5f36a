"""Python on the pages runs and computes what it should: the README's API, the tutorial's method, the notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from cuvee.demo import family
from cuvee.demo.run import recipe_text
from support.checkpoints import read_checkpoint
from support.pages import DOCS, ROOT, blocks

METHOD, BY_HAND, USE = (block.text for block in blocks(DOCS / "adding-a-method.md", "python"))
(ENTRY_POINT,) = (block.text for block in blocks(DOCS / "adding-a-method.md", "toml"))
API, README_METHOD = (block.text for block in blocks(ROOT / "README.md", "python"))
PACKAGE = ROOT / "examples" / "even-arithmetic"
PACKAGE_LINE = "merge_method: ./even_arithmetic.py:even_arithmetic"
NOTEBOOK = ROOT / "examples" / "python_api.ipynb"


def run(here: Path, *arguments: str) -> str:
    """What a fresh Python prints: a method registered there is not known to other tests."""
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def module(here: Path) -> Path:
    """A directory that holds the tutorial's method as a module."""
    (here / "even_arithmetic.py").write_text(METHOD, encoding="utf-8")
    return here


def test_the_example_package_holds_the_tutorial_s_method_and_entry_point() -> None:
    assert (PACKAGE / "even_arithmetic.py").read_text(encoding="utf-8") == METHOD
    assert ENTRY_POINT in (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    assert PACKAGE_LINE in blocks(DOCS / "adding-a-method.md", "yaml")[0].text
    assert PACKAGE_LINE in (PACKAGE / "recipe.yml").read_text(encoding="utf-8")


def test_the_example_package_s_recipe_and_tests_run(here: Path) -> None:
    place = here / "package"
    shutil.copytree(PACKAGE, place)
    (here / "family").symlink_to(family()["base"].parent)
    (place / "family").symlink_to(family()["base"].parent)
    refused = subprocess.run(
        [sys.executable, "-m", "cuvee", "merge", "package/recipe.yml", "merged"],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "--trust-remote-code" in refused.stderr
    run(here, "-m", "cuvee", "merge", "package/recipe.yml", "merged", "--trust-remote-code", "--quiet")
    assert (here / "merged" / "model.safetensors").exists()
    assert "3 passed" in run(place, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_readme_api(here: Path) -> None:
    (here / "recipe.yml").write_text(recipe_text("linear", family()["base"].parent), encoding="utf-8")
    first, second = run(here, "-c", API).splitlines()
    sizes = sum(a.nbytes for name in ("reverse", "sort", "add") for a in read_checkpoint(family()[name]).values())
    assert first == f"30 tensors, {sizes} bytes to read"
    assert second.startswith("30 merged, 0 copied in ")
    assert (here / "merged" / "model.safetensors").exists()


def test_readme_shows_the_tutorial_s_method() -> None:
    assert README_METHOD == METHOD


def test_tutorial_s_test_by_hand(module: Path) -> None:
    call = "test_changes_of_length_5_and_10_are_brought_to_7_and_a_half()\nprint('passed')"
    script = f"from even_arithmetic import even_arithmetic\n{BY_HAND}\n{call}"
    assert run(module, "-c", script) == "passed\n"


def test_tutorial_s_merge_is_the_formula(module: Path) -> None:
    assert run(module, "-c", USE) == "30 tensors merged\n"
    merged = read_checkpoint(module / "merged")
    base, *experts = (
        {name: array.astype(np.float64) for name, array in read_checkpoint(family()[model]).items()}
        for model in ("base", "reverse", "sort", "add")
    )
    for name, start in base.items():
        deltas = [expert[name] - start for expert in experts]
        lengths = [np.sqrt((delta**2).sum()) for delta in deltas]
        exact = start + sum(
            0.8 * np.mean(lengths) / length * delta for length, delta in zip(lengths, deltas, strict=True)
        )
        apart = np.abs(merged[name].astype(np.float64) - exact)
        assert (apart <= np.abs(exact) * 2.0**-8 + 1e-7).all(), name


def test_tutorial_s_entry_point_brings_the_method_to_the_command_line(module: Path) -> None:
    told = module / "even-1.0.dist-info"
    told.mkdir()
    group, _, entry = ENTRY_POINT.partition("\n")
    assert group == '[project.entry-points."cuvee.methods"]'
    (told / "entry_points.txt").write_text("[cuvee.methods]\n" + entry.replace('"', ""), encoding="utf-8")
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: even\nVersion: 1.0\n", encoding="utf-8")
    shown = run(module, "-m", "cuvee", "methods", "even_arithmetic")
    assert "The base plus the sum of the models' changes, all brought to one length." in shown
    assert "Strength of this model's change." in shown


def outputs(cell: Any) -> str:
    """The text that a notebook's cell printed or showed."""
    return "".join(str(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in cell.get("outputs", ()))


def test_notebook_runs_and_its_formula_by_hand_holds(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(here / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()
    shown = {cell["id"]: outputs(cell) for cell in notebook.cells}
    (by_hand,) = (shown[cell["id"]] for cell in notebook.cells if "by_hand = " in cell["source"])
    assert by_hand == "True"
    (plan,) = (shown[cell["id"]] for cell in notebook.cells if "plan = cuvee.plan(recipe)\n" in cell["source"])
    assert plan.startswith("30 tensors, 324,576 parameters\n")


def test_notebook_is_committed_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
