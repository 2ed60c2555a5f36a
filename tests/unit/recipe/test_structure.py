"""models, slices and modules: what they become, and where their mistakes are found."""

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import load_recipe
from cuvee.tensors.reference import ModelRef


def refusal(text):
    with pytest.raises(RecipeError) as refused:
        load_recipe(text)
    return refused.value


def test_models_become_one_slice_of_whole_models_with_the_base_last():
    recipe, _ = load_recipe(
        "merge_method: ties\nbase_model: o@v\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}"
    )
    (module,) = recipe.modules
    (piece,) = module.slices
    assert (module.name, dict(module.parameters), dict(recipe.parameters)) == ("default", {}, {"weight": 1})
    assert [(str(source.model), source.layer_range, source.path) for source in piece.sources] == [
        ("a", None, ("models", 0)),
        ("b", None, ("models", 1)),
        ("o@v", None, ("base_model",)),
    ]
    assert recipe.base_model == ModelRef("o", "v")
    assert recipe.models() == (ModelRef("a"), ModelRef("b"), ModelRef("o", "v"))


def test_a_listed_base_keeps_its_place():
    recipe, _ = load_recipe(
        "merge_method: ties\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}"
    )
    assert [str(source.model) for source in recipe.modules[0].slices[0].sources] == ["a", "b"]


def test_slices_keep_ranges_bases_and_residuals():
    recipe, warnings = load_recipe("""
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [4, 8]}
  - base_model: c
    residual_weight: 0.25
    sources:
      - {model: b, layer_range: [1, 2]}
      - {model: c, layer_range: [7, 8]}
    parameters: {t: 0.1}
parameters: {t: [0, 1]}
""")
    first, second = recipe.modules[0].slices
    assert [source.layer_range for source in first.sources] == [(0, 4), (4, 8)]
    assert (first.base_model, first.residual_weight) == (None, None)
    assert (second.base_model, second.residual_weight) == (ModelRef("c"), 0.25)
    assert second.parameters == {"t": 0.1}
    assert second.sources[1].path == ("slices", 1, "sources", 1)
    assert recipe.models() == (ModelRef("a"), ModelRef("b"), ModelRef("c"))
    assert warnings == ()


def test_modules_have_names_and_either_body():
    recipe, _ = load_recipe("""
merge_method: passthrough
modules:
  encoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}]}
  decoder:
    models: [{model: b}]
    parameters: {scale: 2}
""")
    assert [module.name for module in recipe.modules] == ["encoder", "decoder"]
    assert recipe.modules[1].parameters == {"scale": 2}
    assert recipe.modules[1].slices[0].sources[0].layer_range is None


def test_architectures_are_remembered():
    recipe, _ = load_recipe("merge_method: passthrough\nmodels: [{model: {model: a, override_architecture: X}}]")
    assert recipe.architectures == {ModelRef("a"): "X"}


SLICED = "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("[0]", ["two whole numbers", "[0]"]),
        ("[0, 1, 2]", ["two whole numbers"]),
        ("0-16", ["two whole numbers", "'0-16'"]),
        ("[0, 1.5]", ["two whole numbers"]),
        ("[false, true]", ["two whole numbers"]),
        ("[-1, 4]", ["negative"]),
        ("[4, -1]", ["negative"]),
        ("[4, 4]", ["empty", "[4, 5]"]),
        ("[8, 4]", ["empty"]),
    ],
)
def test_layer_ranges(written, words):
    error = refusal(SLICED + f"      - model: a\n        layer_range: {written}\n")
    assert (error.line, error.path) == (6, "slices[0].sources[0].layer_range")
    assert all(word in str(error) for word in words), str(error)


def test_sources_of_unequal_length():
    error = refusal(SLICED + "      - {model: a, layer_range: [0, 16]}\n      - {model: b, layer_range: [0, 15]}\n")
    assert error.line == 6
    assert error.expected == "16 layers, like [0, 16] of a"
    assert error.found == "15 layers, [0, 15] of b"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("merge_method: linear\n", 1, ["nothing about what to merge", "models, slices or modules"]),
        ("merge_method: linear\nmodels: null\n", 1, ["nothing about what to merge"]),
        ("merge_method: linear\nmodels: []\n", 2, ["at least one entry"]),
        ("merge_method: linear\nmodels:\n  model: a\n", 2, ["models must be a list", "dash"]),
        ("merge_method: linear\nmodels:\n  - a\n", 3, ["`- model: a`"]),
        (
            "merge_method: linear\nmodels:\n  - model: a\n  - parameters: {weight: 1}\n",
            4,
            ["no model", "remove its dash"],
        ),
        ("merge_method: linear\nmodels:\n  - parameters: {weight: 1}\n", 3, ["no model", "model: NAME"]),
        ("merge_method: linear\nmodels:\n  - model: 7\n", 3, ["quote it"]),
        (
            "merge_method: linear\nmodels:\n  - model: a\n    parameters: [weight]\n",
            4,
            ["parameters must be a mapping"],
        ),
        ("merge_method: linear\nmodels:\n  - model: a\n    parameters:\n      - weight: 1\n", 4, ["remove the dashes"]),
        ("merge_method: linear\nslices:\n  - model: a\n", 3, ["no sources"]),
        (
            "merge_method: linear\nslices:\n  - sources:\n    - model: a\n",
            4,
            ["'a' has no layer_range", "use `models`"],
        ),
        ("merge_method: linear\nslices:\n  - sources: []\n", 3, ["at least one entry"]),
        ("merge_method: linear\nmodules: [a]\n", 2, ["modules must be a mapping"]),
        ("merge_method: linear\nmodules: {}\n", 2, ["names no module"]),
        ("merge_method: linear\nmodules:\n  x: {}\n", 3, ["module x says nothing", "one of models or slices"]),
        ("merge_method: linear\nbase_model: ''\nmodels: [{model: a}]\n", 2, ["empty part"]),
        (SLICED + "      - {model: a, layer_range: [0, 1]}\n    residual_weight: .nan\n", 6, ["finite"]),
    ],
)
def test_bodies_that_cannot_be_meant(text, line, words):
    error = refusal(text)
    assert error.line == line
    assert all(word in str(error) for word in words), str(error)


def test_both_models_and_slices_show_the_shorter_recipe():
    error = refusal("""\
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
slices:
  - sources: [{model: a, layer_range: [0, 32]}, {model: b, layer_range: [0, 32]}]
parameters: {t: 0.5}
""")
    assert error.what == "the recipe has both models and slices"
    assert error.found == "models in line 3, slices in line 4"
    suggestion = error.fix.split("\n", 1)[1]
    recipe, _ = load_recipe(suggestion)
    assert "slices" not in recipe.raw
    assert recipe.raw["models"] == [{"model": "a"}, {"model": "b"}]


@pytest.mark.parametrize(
    "sources",
    [
        "[{model: a, layer_range: [0, 8]}, {model: b, layer_range: [8, 16]}]",
        "[{model: a, layer_range: [0, 8], parameters: {weight: 1}}]",
    ],
)
def test_slices_that_say_more_than_models_are_kept(sources):
    error = refusal(
        f"merge_method: linear\nmodels: [{{model: a}}]\nslices: [{{sources: {sources}}}]\nparameters: {{weight: 1}}\n"
    )
    recipe, _ = load_recipe(error.fix.split("\n", 1)[1])
    assert "models" not in recipe.raw
    assert len(recipe.raw["slices"]) == 1
