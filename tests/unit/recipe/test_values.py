"""Parameters of single tensors: precedence and per-model tuples, against numbers worked out by hand."""

import pytest

from cuvee.errors import RecipeError
from cuvee.methods.registry import get_method
from cuvee.recipe.load import load_recipe
from cuvee.recipe.values import resolve, resolve_parameters

MLP, ATTENTION, NORM = (
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.norm.weight",
)


def parameters(text, tensor=NORM, t=0.0, piece=0, module=0):
    recipe, _ = load_recipe(text)
    chosen = recipe.modules[module]
    spec = get_method(recipe.method)
    return resolve_parameters(recipe, chosen, chosen.slices[piece], spec, t=t, tensor=tensor)


def test_resolve_takes_plain_data():
    assert resolve([0, 1], t=0.25, tensor=NORM) == 0.25
    assert resolve({"filter": "mlp", "value": ["1e-1", "3e-1"]}, t=0.5, tensor=MLP) == pytest.approx(0.2)
    assert resolve({"filter": "mlp", "value": 1}, t=0.5, tensor=NORM) is None


TIES = """
merge_method: ties
base_model: base
models:
  - model: one
    parameters: {weight: 0.5, density: [0, 1]}
  - model: base
  - model: two
    parameters:
      weight:
        - {filter: mlp, value: 3}
        - {filter: self_attn, value: [1, 2]}
  - model: three
parameters:
  weight: 9
  normalize: [{filter: norm, value: false}]
  lambda: 0.25
"""


def test_per_model_values_follow_the_inputs_without_the_base():
    found = parameters(TIES, MLP, t=0.25)
    assert found == {
        "weight": (0.5, 3.0, 9.0),
        "density": (0.25, 1.0, 1.0),
        "elect": "weighted",
        "consensus_method": "sum",
        "trim_scope": "tensor",
        "normalize": True,
        "rescale": False,
        "lambda_": 0.25,
        "int8_mask": False,
    }


def test_filters_that_match_nothing_pass_on_to_the_next_place():
    assert parameters(TIES, ATTENTION, t=0.5)["weight"] == (0.5, 1.5, 9.0)
    assert parameters(TIES, NORM)["weight"] == (0.5, 9.0, 9.0)
    assert parameters(TIES, NORM)["normalize"] is False


def test_each_call_gives_a_dict_of_its_own():
    recipe, _ = load_recipe(TIES)
    (module,) = recipe.modules
    spec = get_method("ties")
    first = resolve_parameters(recipe, module, module.slices[0], spec, t=0.0, tensor=MLP)
    first["lambda_"] = 77
    assert resolve_parameters(recipe, module, module.slices[0], spec, t=0.0, tensor=MLP)["lambda_"] == 0.25


SLICES = """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [2, 4]}
    parameters: {weight: 2, normalize: false}
  - sources:
      - {model: a, layer_range: [4, 8]}
      - {model: b, layer_range: [4, 8], parameters: {weight: 5}}
parameters: {weight: [10, 20]}
"""


def test_source_before_slice_before_recipe():
    assert parameters(SLICES, piece=0) == {"weight": (1.0, 2.0), "normalize": False}
    assert parameters(SLICES, piece=1, t=0.5) == {"weight": (15.0, 5.0), "normalize": True}


def test_module_stands_between_slice_and_recipe():
    text = """
merge_method: linear
modules:
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
        parameters: {weight: 1}
      - sources: [{model: a, layer_range: [0, 2]}]
    parameters: {weight: 2}
  vision_tower:
    models: [{model: a}]
parameters: {weight: 3}
"""
    assert parameters(text, module=0, piece=0)["weight"] == (1.0,)
    assert parameters(text, module=0, piece=1)["weight"] == (2.0,)
    assert parameters(text, module=1)["weight"] == (3.0,)


def test_the_base_takes_parameters_where_it_is_merged_like_any_other():
    text = "merge_method: linear\nbase_model: b\nmodels: [{model: a}, {model: b, parameters: {weight: 4}}]\n"
    assert parameters(text + "parameters: {weight: 3}")["weight"] == (3.0, 4.0)


def test_a_base_listed_twice_is_the_base_once():
    text = "merge_method: task_arithmetic\nbase_model: a\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 2}"
    assert parameters(text)["weight"] == (2.0,)


def test_null_means_not_set():
    text = "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: null}}]"
    assert parameters(text)["scale"] == (None,)
    assert parameters(text + "\nparameters: {scale: 2}")["scale"] == (2.0,)


def test_slerp_has_one_t_for_all():
    text = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
"""
    # Layer 3 of 9: t = 3/8, between the second knot (1/4) and the third (1/2), half way.
    assert parameters(text, ATTENTION, t=3 / 8)["t"] == pytest.approx(0.4)
    assert parameters(text, MLP, t=3 / 8)["t"] == pytest.approx(0.6)
    assert parameters(text, NORM)["t"] == 0.5


def test_a_tensor_that_no_filter_reaches_is_named():
    text = """\
merge_method: linear
models:
  - model: ./chat
    parameters:
      weight:
        - {filter: mlp, value: 1}
"""
    assert parameters(text, MLP)["weight"] == (1.0,)
    with pytest.raises(RecipeError) as refusal:
        parameters(text, NORM)
    error = refusal.value
    assert error.what == "model ./chat has no weight for tensor model.norm.weight"
    assert (error.tensor, error.parameter, error.model) == (NORM, "weight", "./chat")
    assert error.where == "recipe:5 (models[0].parameters.weight)"
    assert "- value:" in error.fix


def test_a_required_value_for_all_that_no_filter_reaches_is_named():
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: {filter: mlp, value: 1}}"
    with pytest.raises(RecipeError, match="there is no t for tensor model"):
        parameters(text, NORM)
