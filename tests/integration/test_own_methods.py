"""Methods from a file that the recipe names: run only on trust, found beside the recipe, as good as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cuvee
from cuvee import MergeOptions
from cuvee.errors import CuveeError, MethodError, RecipeError
from cuvee.methods import registry
from support.tiny_models import Family, assert_rounded_once, load_checkpoint, recipe

BLEND = '''
from __future__ import annotations

from dataclasses import dataclass

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel, Prepared


@dataclass(frozen=True)
class Most:
    size: float


def largest(scan) -> Most:
    return Most(float(scan.gram().diagonal().max()))


@merge_method("blend_of_mine", base="required", models=(1, None), prepare=largest)
def blend(deltas: Deltas, most: Prepared[Most], *, weight: PerModel[float], offset: float = 0.0):
    """Half of the weighted sum.

    Args:
        weight: Share of this model.
        offset: Added to everything.
    """
    assert most.size >= 0
    return sum(delta * (share / 2) for delta, share in zip(deltas, weight)) + offset
'''
RECIPE = """
merge_method: ./methods/mine.py:blend
base_model: "@base"
models:
  - {model: "@a", parameters: {weight: 0.5}}
  - {model: "@b", parameters: {weight: 1.0}}
"""
TRUST = MergeOptions(trust_remote_code=True)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.method_names()
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))


def written(folder: Path, family: Family, code: str = BLEND, text: str = RECIPE) -> Path:
    """A recipe file with the method's file beside it."""
    (folder / "methods").mkdir()
    (folder / "methods" / "mine.py").write_text(code, encoding="utf-8")
    file = folder / "recipe.yml"
    file.write_text(recipe(text, family), encoding="utf-8")
    return file


def expected(family: Family, offset: float = 0.0) -> dict[str, np.ndarray]:
    base, a, b = (family.exact(name) for name in ("base", "a", "b"))
    return {name: base[name] + (a[name] - base[name]) / 4 + (b[name] - base[name]) / 2 + offset for name in base}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_method_beside_the_recipe_is_run_on_trust(processes: int, llama: Family, tmp_path: Path) -> None:
    file = written(tmp_path, llama)
    cuvee.merge(file, tmp_path / "out", MergeOptions(trust_remote_code=True, processes=processes))
    assert_rounded_once(load_checkpoint(tmp_path / "out"), expected(llama), llama.dtype)


def test_it_has_parameters_and_stages_like_any_other(llama: Family, tmp_path: Path) -> None:
    text = RECIPE + "parameters: {offset: 0.25, lines: 2}"
    cuvee.merge(written(tmp_path, llama, text=text), tmp_path / "out", TRUST)
    base = llama.exact("base")
    doubled = {name: base[name] + 2 * (value - base[name]) for name, value in expected(llama, 0.25).items()}
    assert_rounded_once(load_checkpoint(tmp_path / "out"), doubled, llama.dtype)


def test_without_trust_it_is_refused_and_nothing_runs(llama: Family, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    file = written(tmp_path, llama, BLEND + f"\nopen({str(trap)!r}, 'w').close()\n")
    with pytest.raises(RecipeError, match=r"brings a merge method of its own, \./methods/mine\.py:blend") as caught:
        cuvee.merge(file, tmp_path / "out")
    assert caught.value.fix == "read ./methods/mine.py; if you trust it, add --trust-remote-code"
    assert caught.value.line == 2
    assert not trap.exists()
    assert not (tmp_path / "out").exists()
    cuvee.plan(file, TRUST)
    assert trap.exists(), "it is the trust that makes the difference"


@pytest.mark.parametrize(
    ("code", "text", "what", "part"),
    [
        (BLEND, RECIPE.replace("mine.py", "yours.py"), "there is no file", "yours.py"),
        (BLEND, RECIPE.replace(":blend", ":mix"), "mine.py has no merge method 'mix'", "expected: blend"),
        ("x = 1", RECIPE, "mine.py has no merge method 'blend'", "decorator merge_method"),
        ("x = 1\ny = 1 / 0\n", RECIPE, "mine.py could not be loaded", "mine.py:2"),
        ("x = 1\n\ndef (", RECIPE, "mine.py could not be loaded", "mine.py:3"),
        (BLEND.replace("offset: float", "offset: list"), RECIPE, "cannot read the type", "list"),
        (BLEND.replace("blend_of_mine", "linear"), RECIPE, "two merge methods are called 'linear'", "cuvee.methods"),
    ],
)
def test_files_that_will_not_do_are_refused_with_the_place(
    code: str, text: str, what: str, part: str, llama: Family, tmp_path: Path
) -> None:
    with pytest.raises(CuveeError, match=what) as caught:
        cuvee.plan(written(tmp_path, llama, code, text), TRUST)
    assert isinstance(caught.value, RecipeError)
    assert part in " ".join(str(caught.value).split())
    assert "recipe.yml:2" in str(caught.value)


def test_a_result_of_another_shape_is_refused_before_it_is_written(llama: Family, tmp_path: Path) -> None:
    file = written(tmp_path, llama, BLEND.replace("+ offset", "[:1] + offset"))
    with pytest.raises(MethodError, match="'blend_of_mine' gives arrays of another shape"):
        cuvee.merge(file, tmp_path / "out", TRUST)
    assert not (tmp_path / "out").exists()


def test_an_edited_file_is_read_anew(llama: Family, tmp_path: Path) -> None:
    file = written(tmp_path, llama)
    cuvee.plan(file, TRUST)
    (tmp_path / "methods" / "mine.py").write_text(
        BLEND.replace("offset: float", "shift: float").replace("+ offset", "+ shift")
    )
    file.write_text(recipe(RECIPE + "parameters: {shift: 0.25}", llama))
    cuvee.merge(file, tmp_path / "out", MergeOptions(trust_remote_code=True, strict=True))
    assert_rounded_once(load_checkpoint(tmp_path / "out"), expected(llama, 0.25), llama.dtype)
