"""What recipes say, end to end: gradients, filters, precedence, `only` and modules, in numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import cuvee
from cuvee import MergeOptions
from cuvee.errors import PlanError, RecipeError
from support.tiny_models import Family, State, assert_rounded_once, load_checkpoint, make_llama, recipe


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Llamas of five layers: t is 0, 1/4, 1/2, 3/4 and 1."""
    return make_llama(tmp_path_factory.mktemp("five"), layers=5, names=("base", "a", "b"))


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if "layers." in name else None


def mixed(family: Family, shares: dict[str, float]) -> State:
    """(1 - share) * base + share * a for each tensor."""
    base, a = family.exact("base"), family.exact("a")
    return {name: (1 - shares[name]) * base[name] + shares[name] * a[name] for name in base}


def test_a_share_beyond_its_ends_counts_as_the_end_and_is_warned_about(five: Family, tmp_path: Path) -> None:
    text = recipe(TASK.replace("task_arithmetic", "ties"), five, weight="1, density: [2, 0]")
    report = cuvee.merge(text, tmp_path / "out")
    warning, *_ = report.warnings
    assert "density is a share of a whole, from 0 to 1: 2 counts as 1; for 2 percent write 0.02" in warning
    densities = [op.parameters["density"] for op in cuvee.plan(text).ops if "q_proj" in op.name]
    assert densities == [(1.0,), (1.0,), (1.0,), (0.5,), (0.0,)]  # 2, 1.5, 1, 0.5 and 0: not a line from 1 to 0
    base, last = five.state("base"), load_checkpoint(tmp_path / "out")
    for name in base:
        if layer_of(name) == 4:
            np.testing.assert_array_equal(last[name], base[name])
    with pytest.raises(RecipeError, match="share of a whole"):
        cuvee.plan(text, MergeOptions(strict=True))


def test_a_filter_that_no_tensor_matches_is_told(five: Family) -> None:
    text = recipe(TASK, five, weight="[{filter: self_atn, value: 0.5}, {filter: mlp, value: 1}, {value: 0}]")
    warned = "recipe:6 (models[0].parameters.weight[0].filter): no tensor has 'self_atn' in its name; did you mean"
    (warning,) = cuvee.plan(text).warnings
    assert warning.startswith(warned + " self_attn?")
    (warning,) = cuvee.plan(text.replace("self_atn", "self_attn") + "only: [mlp, mpl]\n").warnings
    assert "(only[1]): no tensor has 'mpl' in its name; did you mean mlp?" in warning


TASK = """
merge_method: task_arithmetic
base_model: "@base"
models:
  - model: "@a"
    parameters: {weight: {weight}}
"""


@pytest.mark.parametrize(
    ("weight", "by_layer", "outside"),
    [
        ("0.25", [0.25] * 5, 0.25),
        ("[0, 1]", [0, 0.25, 0.5, 0.75, 1], 0),
        ("[1, 0.2, 0.6]", [1, 0.6, 0.2, 0.4, 0.6], 1),
        ("[0.5, 0.5, 0, 1]", [0.5, 0.5, 0.25, 0.25, 1], 0.5),
        ("[0.3]", [0.3] * 5, 0.3),
    ],
)
def test_gradients_run_over_the_layers(
    weight: str, by_layer: list[float], outside: float, five: Family, tmp_path: Path
) -> None:
    cuvee.merge(recipe(TASK, five, weight=weight), tmp_path / "out")
    names = five.state("base")
    shares = {name: outside if (layer := layer_of(name)) is None else by_layer[layer] for name in names}
    assert_rounded_once(load_checkpoint(tmp_path / "out"), mixed(five, shares), five.dtype)


def test_gradient_starts_anew_in_each_slice(five: Family, tmp_path: Path) -> None:
    text = """
    merge_method: linear
    parameters: {weight: 1, normalize: false}
    slices:
      - sources: [{model: "@a", layer_range: [1, 4], parameters: {weight: [2, 4]}}]
      - sources: [{model: "@a", layer_range: [4, 5], parameters: {weight: [0.5, 0.25]}}]
    """
    cuvee.merge(recipe(text, five), tmp_path / "out")
    a = five.exact("a")
    factors = {1: 2, 2: 3, 3: 4, 4: 0.25}  # t = 0, 1/2, 1; and 1, as the second slice has one layer
    exact = {
        name.replace(f"layers.{layer}.", f"layers.{layer - 1}."): factors[layer] * tensor
        for name, tensor in a.items()
        if (layer := layer_of(name)) in factors
    }
    exact |= {"model.embed_tokens.weight": 2 * a["model.embed_tokens.weight"]}
    exact |= {name: 0.5 * a[name] for name in ("model.norm.weight", "lm_head.weight")}
    assert_rounded_once(load_checkpoint(tmp_path / "out"), exact, five.dtype)


def test_the_first_filter_that_matches_wins(five: Family, tmp_path: Path) -> None:
    filters = (
        "[{filter: self_attn, value: [0, 1]}, {filter: layers.1.mlp, value: 0.7}, {filter: mlp, value: 0.3},"
        " {filter: lm_head, value: 1}, {value: 0.1}]"
    )
    text = recipe(TASK, five, weight=filters)
    cuvee.merge(text, tmp_path / "out")

    def share(name: str) -> float:
        layer = layer_of(name)
        if "self_attn" in name:
            return (layer or 0) / 4
        if "mlp" in name:
            return 0.7 if layer == 1 else 0.3
        return 1.0 if "lm_head" in name else 0.1

    exact = mixed(five, {name: share(name) for name in five.state("base")})
    assert_rounded_once(load_checkpoint(tmp_path / "out"), exact, five.dtype)


def test_slerp_recipe_of_the_guides(five: Family, tmp_path: Path) -> None:
    """The recipe that most published merges use; ends of the gradients are the models themselves."""
    text = """
    slices:
      - sources:
          - {model: "@base", layer_range: [0, 5]}
          - {model: "@a", layer_range: [0, 5]}
    merge_method: slerp
    base_model: "@base"
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
        - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
        - value: 0.5
    """
    planned = cuvee.plan(recipe(text, five))
    values = {op.name: op.parameters["t"] for op in planned.ops}
    for layer, (attention, mlp) in enumerate(zip([0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0], strict=True)):
        assert values[f"model.layers.{layer}.self_attn.q_proj.weight"] == pytest.approx(attention, abs=1e-12)
        assert values[f"model.layers.{layer}.mlp.up_proj.weight"] == pytest.approx(mlp, abs=1e-12)
        assert values[f"model.layers.{layer}.input_layernorm.weight"] == 0.5
    assert values["lm_head.weight"] == 0.5
    cuvee.merge(recipe(text, five), tmp_path / "out")
    got, base, a = load_checkpoint(tmp_path / "out"), five.state("base"), five.state("a")
    for name, model in {
        "0.self_attn.q_proj": base,
        "0.mlp.up_proj": a,
        "4.self_attn.k_proj": a,
        "4.mlp.gate_proj": base,
    }.items():
        key = f"model.layers.{name}.weight"
        np.testing.assert_allclose(got[key], model[key], rtol=1e-6, atol=1e-7)


def test_the_nearest_value_wins(five: Family) -> None:
    text = """
    merge_method: ties
    base_model: "@base"
    parameters: {weight: 0.1, density: 0.2, lambda: 0.9}
    slices:
      - sources:
          - {model: "@base", layer_range: [0, 2]}
          - {model: "@a", layer_range: [0, 2], parameters: {weight: 0.7}}
          - {model: "@b", layer_range: [0, 2]}
        parameters: {weight: 0.4}
      - sources:
          - {model: "@base", layer_range: [2, 5]}
          - {model: "@a", layer_range: [2, 5], parameters: {density: [{filter: mlp, value: 0.6}]}}
          - {model: "@b", layer_range: [2, 5]}
        parameters: {lambda: 0.5}
    """
    ops = {op.name: op.parameters for op in cuvee.plan(recipe(text, five)).ops}
    first = ops["model.layers.1.mlp.up_proj.weight"]
    assert (first["weight"], first["density"], first["lambda_"]) == ((0.7, 0.4), (0.2, 0.2), 0.9)
    second = ops["model.layers.3.mlp.up_proj.weight"]
    assert (second["weight"], second["density"], second["lambda_"]) == ((0.1, 0.1), (0.6, 0.2), 0.5)
    assert ops["model.layers.3.self_attn.q_proj.weight"]["density"] == (0.2, 0.2)  # the filter passes the question on
    assert second["normalize"] is True


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_ties"])
def test_only_leaves_the_rest_to_the_bit(method: str, five: Family, tmp_path: Path) -> None:
    text = f"""
    merge_method: {method}
    base_model: "@base"
    models: [{{model: "@base"}}, {{model: "@a"}}]
    parameters: {{t: 0.5, weight: 0.5, density: 0.5}}
    only: [layers.2.mlp, lm_head]
    """
    names = [name for name in five.state("base") if "layers.2.mlp" in name or "lm_head" in name]
    report = cuvee.merge(recipe(text, five), tmp_path / "out")
    got, base = load_checkpoint(tmp_path / "out"), five.state("base")
    assert {name for name in base if got[name].tobytes() != base[name].tobytes()} == set(names)
    assert (report.merged, report.copied) == (4, len(base) - 4)


def test_only_keeps_dtypes_of_what_it_leaves(five: Family, tmp_path: Path) -> None:
    cuvee.merge(recipe(TASK, five, weight=1) + "only: [lm_head]\ndtype: bfloat16\n", tmp_path / "out")
    got, base = load_checkpoint(tmp_path / "out"), five.state("base")
    assert got.keys() == base.keys()
    assert {name: str(tensor.dtype) for name, tensor in got.items() if tensor.dtype != np.float32} == {
        "lm_head.weight": "bfloat16"
    }


def test_bases_of_slices(five: Family, tmp_path: Path) -> None:
    text = """
    merge_method: task_arithmetic
    parameters: {weight: 1, lambda: 2}
    slices:
      - base_model: "@base"
        sources: [{model: "@base", layer_range: [0, 2]}, {model: "@a", layer_range: [0, 2]}]
      - base_model: "@b"
        sources: [{model: "@b", layer_range: [2, 5]}, {model: "@a", layer_range: [2, 5]}]
    """
    cuvee.merge(recipe(text, five), tmp_path / "out")
    base, a, b = (five.exact(name) for name in ("base", "a", "b"))
    exact = {}
    for name in a:
        layer = layer_of(name)
        early = layer < 2 if layer is not None else "embed" in name
        exact[name] = 2 * a[name] - (base if early else b)[name]
    assert_rounded_once(load_checkpoint(tmp_path / "out"), exact, five.dtype)


def with_vision(family: Family, seed: int) -> State:
    """The family's weights as a vision-language model names them."""
    random = np.random.default_rng(seed)
    text = {
        name.replace("model.", "language_model.model.", 1): tensor
        for name, tensor in family.state("ab"[seed % 2]).items()
    }
    shapes = {
        "vision_tower.encoder.layers.0.fc.weight": (8, 8), "vision_tower.encoder.layers.0.fc.bias": (8,),
        "vision_tower.encoder.layers.1.fc.weight": (8, 8), "vision_tower.encoder.layers.1.fc.bias": (8,),
        "multi_modal_projector.linear.weight": (16, 8),
    }  # fmt: skip
    return text | {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


MODULES = """
merge_method: linear
modules:
  text_decoder:
    slices:
      - sources: [{model: "@a", layer_range: [0, 2]}, {model: "@b", layer_range: [0, 2]}]
    parameters: {weight: 0.5}
  vision_tower:
    models: [{model: "@a", parameters: {weight: 3}}, {model: "@b", parameters: {weight: 1}}]
  multi_modal_projector:
    models: [{model: "@b"}]
    parameters: {weight: 1}
"""


@pytest.fixture
def seeing(five: Family, tmp_path: Path) -> Family:
    """Two vision-language models."""
    family = make_llama(tmp_path / "seeing", layers=5, names=("a", "b"))
    for seed, name in enumerate(("a", "b")):
        (family.path(name) / "config.json").write_text(
            '{"text_config": {"num_hidden_layers": 5}, "vision_config": {"num_hidden_layers": 2}}'
        )
        save_file(with_vision(five, seed), family.path(name) / "model.safetensors")
    return family


def test_modules_are_merged_each_in_its_way(seeing: Family, tmp_path: Path) -> None:
    cuvee.merge(recipe(MODULES, seeing), tmp_path / "out")
    a, b = seeing.exact("a"), seeing.exact("b")
    exact = {}
    for name in a:
        if "language_model" in name or name == "lm_head.weight":
            if ".layers." not in name or int(name.split(".layers.")[1].split(".")[0]) < 2:
                exact[name] = (a[name] + b[name]) / 2
        elif name.startswith("vision_tower"):
            exact[name] = 0.75 * a[name] + 0.25 * b[name]
        else:
            exact[name] = b[name]
    assert_rounded_once(load_checkpoint(tmp_path / "out"), exact, seeing.dtype)
    config = Family("x", tmp_path, seeing.dtype).config("out")
    assert config["text_config"]["num_hidden_layers"] == 2
    assert config["vision_config"]["num_hidden_layers"] == 2


def test_modules_must_cover_the_model(seeing: Family) -> None:
    text = MODULES[: MODULES.index("  multi_modal_projector")].replace("text_decoder", "vision_model")
    with pytest.raises(PlanError, match="vision_model"):
        cuvee.plan(recipe(text, seeing))


def test_seed_and_options_reach_the_masks(five: Family, tmp_path: Path) -> None:
    text = recipe(TASK.replace("task_arithmetic", "dare_linear"), five, weight="1, density: 0.5")
    for name, seed in {"one": 1, "two": 2, "again": 1}.items():
        cuvee.merge(text, tmp_path / name, MergeOptions(random_seed=seed))
    one, two, again = (load_checkpoint(tmp_path / name) for name in ("one", "two", "again"))
    assert all(one[name].tobytes() == again[name].tobytes() for name in one)
    base = five.state("base")
    kept = {name: np.mean(one[name] != base[name]) for name in one if one[name].size > 1000}
    assert all(0.4 < share < 0.6 for share in kept.values()), kept
    assert all(one[name].tobytes() != two[name].tobytes() for name in kept)
