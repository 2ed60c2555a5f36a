"""Keys without effect: each is warned about once, with its line and what to write instead."""

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import load_recipe

TIES = """\
merge_method: ties
base_model: o
models:
  - model: a
    parameters:
      weight: 0.5
parameters:
  density: 0.5
"""


def warnings(text):
    return load_recipe(text)[1]


def test_a_clean_recipe_has_no_warnings_and_is_strict():
    assert warnings(TIES) == ()
    assert load_recipe(TIES, strict=True)[1] == ()


@pytest.mark.parametrize(
    "lines",
    [
        "int8_mask: true",
        "name: my-merge",
        "  int8_mask: true",
        "  normalize: true",
        "dtype: null",
        "tokenizer_source: null",
    ],
)
def test_keys_seen_in_the_wild_pass_silently(lines):
    assert load_recipe(TIES + lines + "\n", strict=True)[1] == ()


def test_normalize_for_a_method_without_it_passes_silently():
    text = "merge_method: passthrough\nnormalize: true\nmodels: [{model: a}]\nparameters: {normalize: true}\n"
    assert load_recipe(text, strict=True)[1] == ()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("dtpye: float16", "recipe:9 (dtpye): unknown key 'dtpye'; did you mean dtype?"),
        ("merge-method: x", "recipe:9 (merge-method): unknown key 'merge-method'; did you mean merge_method?"),
        (
            "lambda: 2",
            (
                "recipe:9 (lambda): lambda stands beside `parameters`, not in it, and has no effect; "
                "indent it below `parameters:`, or write `parameters: {lambda: 2}`"
            ),
        ),
        (
            "random_seed: 4",
            (
                "recipe:9 (random_seed): random_seed has no effect here; give the seed on the command line: "
                "--random-seed N"
            ),
        ),
        (
            "dare_linear: true",
            "recipe:9 (dare_linear): dare_linear has no effect here; write `merge_method: dare_linear`",
        ),
        (
            "  t: 0.5",
            "recipe:9 (parameters.t): ties has no parameter 't', so it has no effect; slerp, nearswap have it",
        ),
        (
            "  scale: 0.5",
            "recipe:9 (parameters.scale): ties has no parameter 'scale', so it has no effect; passthrough has it",
        ),
        ("  densty: 0.5", "recipe:9 (parameters.densty): unknown parameter 'densty'; did you mean density?"),
        (
            "  dtype: bfloat16",
            (
                "recipe:9 (parameters.dtype): dtype is no parameter and has no effect here; "
                "it belongs at the top of the recipe; check its indentation"
            ),
        ),
        (
            "layer_range: [0, 1]",
            "recipe:9 (layer_range): layer_range has no effect here; it belongs in an entry of a slice's sources",
        ),
        ("5: x", "recipe:9 ([5]): unknown key 5; known keys here: "),
        (
            "  dare_epsilon: 1",
            (
                "recipe:9 (parameters.dare_epsilon): dare_epsilon has no effect here; use the parameter epsilon of "
                "della or della_linear"
            ),
        ),
    ],
)
def test_keys_without_effect(lines, expected):
    (warning,) = warnings(TIES + lines + "\n")
    assert warning.startswith(expected)
    with pytest.raises(RecipeError) as refusal:
        load_recipe(TIES + lines + "\n", strict=True)
    assert refusal.value.line == 9


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("    layer_range: [0, 4]", ["layer_range has no effect under models"]),
        ("    density: 0.3", ["density stands beside `parameters`"]),
        ("    dtype: float16", ["it belongs at the top of the recipe"]),
        ("    modle: x", ["did you mean model?"]),
    ],
)
def test_keys_of_models(entry, words):
    (warning,) = warnings(TIES.replace("  - model: a\n", f"  - model: a\n{entry}\n"))
    assert warning.startswith("recipe:5 (models[0].")
    assert all(word in warning for word in words)


def test_values_for_all_have_no_effect_under_one_model():
    (warning,) = warnings(TIES.replace("weight: 0.5", "weight: 0.5\n      normalize: false"))
    assert warning.startswith("recipe:7 (models[0].parameters.normalize): normalize is one value for the whole merge")


def test_unknown_keys_of_filters():
    (warning,) = warnings(TIES + "  lambda: [{fliter: mlp, value: 1}]\n")
    assert warning == "recipe:9 (parameters.lambda[0].fliter): unknown key 'fliter'; a filter has filter and value"


def test_warnings_come_in_the_order_of_the_file():
    found = warnings("nmae: x\n" + TIES + "  t: 1\n  scale: 2\nzzz: 3\n")
    assert [warning.split(" ")[0] for warning in found] == ["recipe:1", "recipe:10", "recipe:11", "recipe:12"]
