from __future__ import annotations

from typing import Any

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import load_recipe
from cuvee.recipe.schema import Recipe
from cuvee.tensors.reference import ModelRef


def load(models: str) -> Recipe:
    recipe, warnings = load_recipe(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{models}")
    assert not warnings
    return recipe


def test_patterns_are_kept_in_order() -> None:
    recipe = load("""
  - model: a
    rename:
      ^visual: model.visual
      (\\d+)\\.attn: \\1.self_attn
      drop: ""
  - model: b
""")
    assert recipe.renames == {
        ModelRef("a"): (("^visual", "model.visual"), (r"(\d+)\.attn", r"\1.self_attn"), ("drop", ""))
    }


def test_patterns_are_not_run_when_they_are_read() -> None:
    """This one would not end even on an empty text."""
    endless = "((a?){100000000}){100000000}"
    recipe = load(f"  - model: a\n    rename: {{'{endless}': '\\2'}}\n")
    assert recipe.renames == {ModelRef("a"): ((endless, r"\2"),)}


def test_a_model_that_is_listed_twice_may_be_renamed_once() -> None:
    recipe = load("  - model: a\n  - model: a\n    rename: {x: y}\n  - model: a\n    rename: {x: y}\n")
    assert recipe.renames == {ModelRef("a"): (("x", "y"),)}
    with pytest.raises(RecipeError, match="a is renamed in two ways") as caught:
        load("  - model: a\n    rename: {x: z}\n  - model: a\n    rename: {x: y}\n")
    assert caught.value.line == 7


@pytest.mark.parametrize(
    ("rename", "what"),
    [
        ("[a, b]", "rename"),
        ("{a: 1}", "must be text"),
        ("{a: {b: c}}", "must be text"),
        ("{'(a': b}", "not a regular expression"),
        ("{'(a)': '\\2'}", "not a regular expression"),
        ("{'(a)': '\\g<x>'}", "not a regular expression"),
        ("{'a': '\\q'}", "not a regular expression"),
    ],
)
def test_what_means_nothing_is_refused(rename: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        load(f"  - model: a\n    rename: {rename}\n")
    assert caught.value.line == 5
    assert caught.value.fix


def test_a_rename_elsewhere_says_where_it_belongs() -> None:
    recipe: dict[str, Any] = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    _, warnings = load_recipe(recipe | {"rename": {"a": "b"}})
    assert "rename has no effect here" in warnings[0]
    assert "beside `model`" in warnings[0]
