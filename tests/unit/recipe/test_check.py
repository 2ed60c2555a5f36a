"""What methods need of recipes: counts, bases, required values, each refusal at its line."""

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import load_recipe


def refusal(text):
    with pytest.raises(RecipeError) as refused:
        load_recipe(text)
    return refused.value


def test_a_missing_weight_names_the_model():
    error = refusal("""\
merge_method: linear
models:
  - model: ./base
    parameters: {weight: 1}
  - model: ./chat
""")
    assert error.what == "model ./chat has no weight"
    assert (error.line, error.model, error.parameter) == (5, "./chat", "weight")


@pytest.mark.parametrize(
    ("entry", "line", "words"),
    [
        ("    parameters:\n    weight: 0.5\n", 5, ["stands beside `parameters`", "parameters: {weight: 0.5}"]),
        ("    weight: 0.5\n", 4, ["stands beside `parameters`"]),
        ("    paramters:\n      weight: 0.5\n", 4, ["'paramters'", "did you mean parameters?"]),
        ("    parameters:\n      wieght: 0.5\n", 5, ["'wieght'", "did you mean weight?"]),
        ("weight: 0.5\n", 4, ["stands beside `parameters`"]),
        ("    parameters: {weight: null}\n", 3, ["add `parameters: {weight: ...}`"]),
    ],
)
def test_a_missing_weight_points_at_what_was_probably_meant(entry, line, words):
    error = refusal("merge_method: linear\nmodels:\n  - model: a\n" + entry)
    assert error.what == "model a has no weight"
    assert error.line == line
    assert all(word in str(error) for word in words), str(error)


def test_another_models_mistake_explains_nothing():
    error = refusal("""\
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
    weight: 2
  - model: b
""")
    assert (error.what, error.line) == ("model b has no weight", 6)


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ("t: 0.5\n", 4, ["stands beside `parameters`", "parameters: {t: 0.5}"]),
        ("", 1, ["t under `parameters`", "at the top"]),
        ("parameters: {T: 1}\n", 4, ["did you mean t?"]),
    ],
)
def test_slerp_without_t(lines, line, words):
    error = refusal("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n" + lines)
    assert error.what == "slerp needs the parameter t"
    assert error.line == line
    assert all(word in str(error) for word in words), str(error)


def test_t_under_a_model_is_no_t():
    error = refusal("merge_method: slerp\nbase_model: a\nmodels:\n  - model: b\n    parameters: {t: 0.5}\n")
    assert (error.what, error.line) == ("slerp needs the parameter t", 5)
    assert "move it to the `parameters` at the top" in error.fix


@pytest.mark.parametrize(
    ("text", "line", "expected", "found"),
    [
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {t: 1}",
            3,
            "exactly 1 model beside the base a",
            "2: b, c",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: a}]\nparameters: {t: 1}",
            3,
            "exactly 1 model beside the base a",
            "none",
        ),
        ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]", 2, "exactly 1 model", "2: a, b"),
        (
            "merge_method: passthrough\nbase_model: o\nmodels: [{model: a}]",
            3,
            "exactly 1 model",
            "2: a, o (the base_model)",
        ),
        (
            "merge_method: ties\nbase_model: a\nmodels: [{model: a}]\nparameters: {weight: 1}",
            3,
            "at least 1 model beside the base a",
            "none",
        ),
        (
            (
                "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n"
                "  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]"
            ),
            4,
            "exactly 1 model",
            "2: a, b",
        ),
    ],
)
def test_numbers_of_models(text, line, expected, found):
    error = refusal(text)
    assert (error.line, error.expected, error.found) == (line, expected, found)


def test_a_missing_base():
    error = refusal("merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: 1}\n")
    assert error.what == "ties needs a base model, and the recipe names none"
    assert error.line == 1


def test_a_base_that_a_slice_does_not_list():
    error = refusal("""\
merge_method: ties
base_model: o
slices:
  - sources:
      - {model: a, layer_range: [2, 4]}
parameters: {weight: 1}
""")
    assert error.line == 5 - 1
    assert error.fix == "add `- {model: o, layer_range: [2, 4]}` to the sources"


def test_a_slices_own_base_is_enough():
    recipe, warnings = load_recipe("""
merge_method: slerp
slices:
  - base_model: a
    sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
parameters: {t: 1}
""")
    assert recipe.base_model is None
    assert warnings == ()


def test_a_base_that_is_merged_like_any_other_needs_its_weight():
    error = refusal("merge_method: linear\nbase_model: o\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    assert (error.what, error.line) == ("model o has no weight", 2)
    assert "remove base_model" in error.fix


def test_the_base_needs_no_weight_and_is_told_when_it_has_one():
    text = "merge_method: ties\nbase_model: o\nmodels:\n  - model: o\n  - model: a\n    parameters: {weight: 1}\n"
    assert load_recipe(text)[1] == ()
    _, warnings = load_recipe(text.replace("- model: o\n", "- model: o\n    parameters: {weight: 2}\n"))
    assert warnings == (
        "recipe:5 (models[0].parameters.weight): o is the base model, so its weight of 2 has no effect; remove it",
    )


def test_only_needs_a_base():
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\nonly: [mlp]\n"
    assert refusal(text).line == 3
    assert load_recipe(text + "base_model: a\n")[0].only == ("mlp",)
    assert load_recipe(text.replace("[mlp]", "mlp") + "base_model: a\n")[0].only == ("mlp",)
    assert "quote" in refusal(text.replace("[mlp]", "[5]")).fix
