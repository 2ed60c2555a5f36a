"""Adapters merged into one, against dense updates in float64 worked out from the files alone, and against PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuvee.errors import CuveeError
from cuvee.lora.recipe import read_adapter_recipe
from cuvee.lora_api import merge_lora
from cuvee.options import MergeOptions
from support.adapter_files import dense, factors, weighted_sum, write_adapter
from support.checkpoints import read_file, write_tensors
from support.pages import DOCS, blocks

SIDES = {f"model.layers.{layer}.self_attn.{name}": sides for layer in (0, 1)
         for name, sides in {"q_proj": (24, 20), "v_proj": (12, 20), "o_proj": (20, 24)}.items()}  # fmt: skip
Q0, Q1, V0, O1 = (f"model.layers.{n}" for n in ("0.self_attn.q_proj", "1.self_attn.q_proj", "0.self_attn.v_proj",
                                                 "1.self_attn.o_proj"))  # fmt: skip


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Three adapters of different ranks, alphas and target modules; the last scales by the root of its rank."""
    return [
        write_adapter(tmp_path / "a", {Q0: 3, Q1: 3, V0: 5}, SIDES, seed=1),
        write_adapter(tmp_path / "b", {Q0: 2, Q1: 2, O1: 2}, SIDES, seed=2, alpha=3.0),
        write_adapter(tmp_path / "c", {Q0: 4, V0: 4}, SIDES, seed=3, alpha=2.0, use_rslora=True),
    ]


def updates(adapters: list[Path]) -> list[dict[str, Any]]:
    return [dense(path, rslora=path.name == "c") for path in adapters]


def merge(out: Path, adapters: list[Path], method: str, *, dtype: str | None = None, **parameters: Any) -> Path:
    weights = parameters.pop("weights", (0.7, -0.4, 1.1))
    entries = [{"model": str(path), "parameters": {"weight": w}} for path, w in zip(adapters, weights, strict=True)]
    recipe = {
        "merge_method": method,
        "models": entries,
        "parameters": parameters,
        **({"dtype": dtype} if dtype else {}),
    }
    merge_lora(recipe, out, MergeOptions(overwrite=True, threads=1))
    return out


def assert_same(got: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert got[name] == pytest.approx(values, abs=tolerance * np.abs(values).max()), name


def test_concatenation_is_the_weighted_sum_of_the_updates(tmp_path: Path, adapters: list[Path]) -> None:
    out = merge(tmp_path / "out", adapters, "concat")
    assert_same(dense(out), weighted_sum(updates(adapters), (0.7, -0.4, 1.1)), 1e-6)
    assert {name: down.shape[0] for name, (down, _, _) in factors(out).items()} == {Q0: 9, Q1: 5, V0: 9, O1: 2}
    first = factors(adapters[0])[Q0][0]
    assert np.array_equal(factors(out)[Q0][0][:3], first)  # A is taken as it is, bit for bit


def test_svd_is_the_best_approximation_of_the_sum(tmp_path: Path, adapters: list[Path]) -> None:
    out = merge(tmp_path / "out", adapters, "svd", rank=3)
    for name, total in weighted_sum(updates(adapters), (0.7, -0.4, 1.1)).items():
        u, s, vt = np.linalg.svd(total)
        best = (u[:, :3] * s[:3]) @ vt[:3]
        assert dense(out)[name] == pytest.approx(best, abs=1e-4 * s[0]), name
    assert {down.shape[0] for down, _, _ in factors(out).values()} == {3, 2}


@pytest.mark.parametrize("space", ["core", "knots"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_linear_methods_do_not_depend_on_the_space(
    tmp_path: Path, adapters: list[Path], method: str, space: str
) -> None:
    out = merge(tmp_path / "out", adapters, method, space=space, weights=(0.7, 0.4, 1.1))
    total = 2.2 if method == "linear" else 1.0
    assert_same(dense(out), weighted_sum(updates(adapters), [w / total for w in (0.7, 0.4, 1.1)]))


def trimmed_and_elected(coordinates: list[Any], weights: tuple[float, ...], density: float) -> Any:
    """TIES from its paper (arXiv:2306.01708) in plain NumPy."""
    kept = []
    for values in coordinates:
        count = max(1, int(density * values.size))
        order = np.argsort(-abs(values), axis=None, kind="stable")
        mask = np.zeros(values.size)
        mask[order[:count]] = 1
        kept.append(values * mask.reshape(values.shape))
    weighted = [w * values for w, values in zip(weights, kept, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    agree = [(np.sign(values) == sign) for values in weighted]
    total = sum(values * mask for values, mask in zip(weighted, agree, strict=True))
    share = sum(w * mask for w, mask in zip(weights, agree, strict=True))
    return total / np.where(share == 0, 1.0, share)


@pytest.mark.parametrize("space", ["core", "knots"])
def test_ties_acts_on_the_coordinates_of_the_papers(tmp_path: Path, space: str) -> None:
    weights = (1.0, 0.8)
    pair = [write_adapter(tmp_path / name, {Q0: rank}, SIDES, seed=rank, alpha=2.0 * rank) for name, rank in
            (("a", 3), ("b", 4))]  # fmt: skip
    out = merge(tmp_path / "out", pair, "ties", space=space, weights=weights, density=0.6)
    every = [factors(path)[Q0] for path in pair]
    if space == "knots":
        side_by_side = np.concatenate([s * (b @ a) for a, b, s in every], axis=1)
        u, s, vt = np.linalg.svd(side_by_side, full_matrices=False)
        wanted = (u[:, :7] * s[:7]) @ trimmed_and_elected(np.split(vt[:7], 2, axis=1), weights, 0.6)
    else:
        left = np.linalg.svd(np.concatenate([np.sqrt(s) * b for _, b, s in every], axis=1))[0][:, :7]
        right = np.linalg.svd(np.concatenate([np.sqrt(s) * a for a, _, s in every]))[2][:7]
        cores = [left.T @ (s * (b @ a)) @ right.T for a, b, s in every]
        wanted = left @ trimmed_and_elected(cores, weights, 0.6) @ right
    assert dense(out)[Q0] == pytest.approx(wanted, abs=1e-4 * abs(wanted).max())


def test_an_absent_module_counts_as_no_change(tmp_path: Path, adapters: list[Path]) -> None:
    # model_stock averages over all models, so who is not there still counts; here two of three have the module.
    out = merge(tmp_path / "out", adapters, "linear", weights=(1.0, 1.0, 1.0))
    assert dense(out)[O1] == pytest.approx(updates(adapters)[1][O1] / 3, abs=1e-4)


def test_rank_cuts_what_a_method_made(tmp_path: Path, adapters: list[Path]) -> None:
    full = dense(merge(tmp_path / "full", adapters, "ties", density=0.5))
    out = merge(tmp_path / "out", adapters, "ties", density=0.5, rank=2)
    for name, (down, _, _) in factors(out).items():
        assert down.shape[0] == 2
        s = np.linalg.svd(full[name], compute_uv=False)
        left = np.linalg.norm(full[name] - dense(out)[name])
        assert left == pytest.approx(np.sqrt((s[2:] ** 2).sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "breadcrumbs", "sce", "model_stock", "ram"])
def test_any_method_of_changes_gives_an_adapter_twice_the_same(
    tmp_path: Path, adapters: list[Path], method: str
) -> None:
    density = {"density": 0.5} if method == "della" else {}
    one, two = (
        read_file(merge(tmp_path / n, adapters, method, **density) / "adapter_model.safetensors") for n in ("1", "2")
    )
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert np.isfinite(values).all()
        assert values.tobytes() == two[name].tobytes(), name


def test_parameters_follow_filters_and_layers(tmp_path: Path) -> None:
    both = [write_adapter(tmp_path / n, {Q0: 2, Q1: 2, V0: 2}, SIDES, seed=i, alpha=2.0) for i, n in enumerate("ab")]
    recipe = {
        "merge_method": "concat",
        "models": [
            {"model": str(both[0]), "parameters": {"weight": [{"filter": "v_proj", "value": 3.0}, {"value": [0, 1]}]}},
            {"model": str(both[1]), "parameters": {"weight": 1.0}},
        ],
    }  # fmt: skip
    merge_lora(recipe, tmp_path / "out")
    one, other = (dense(path) for path in both)
    got = dense(tmp_path / "out")
    assert got[Q0] == pytest.approx(other[Q0], abs=1e-5)
    assert got[Q1] == pytest.approx(one[Q1] + other[Q1], abs=1e-5)
    assert got[V0] == pytest.approx(3 * one[V0] + other[V0], abs=1e-4)


def test_dtype_and_whole_tensors(tmp_path: Path) -> None:
    norm = {"model.norm.weight": np.arange(20, dtype=np.float32)}
    both = [write_adapter(tmp_path / n, {Q0: 2}, SIDES, seed=i, whole=norm, modules_to_save=["norm"])
            for i, n in enumerate("ab")]  # fmt: skip
    out = merge(tmp_path / "out", both, "concat", dtype="bfloat16", weights=(1.0, 1.0))
    tensors = read_file(out / "adapter_model.safetensors")
    assert tensors[f"base_model.model.{Q0}.lora_A.weight"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(tensors["base_model.model.model.norm.weight"], norm["model.norm.weight"])
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == ["norm"]


def refused(tmp_path: Path, recipe: Any) -> str:
    with pytest.raises(CuveeError) as caught:
        merge_lora(recipe, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert not (tmp_path / "refused.partial").exists()
    return str(caught.value)


def test_whole_tensors_that_differ_are_refused_with_the_way_out(tmp_path: Path) -> None:
    both = [
        write_adapter(tmp_path / n, {Q0: 2}, SIDES, seed=i, modules_to_save=["norm"],
                      whole={"model.norm.weight": np.full(20, i, np.float32)})
        for i, n in enumerate("ab")
    ]  # fmt: skip
    said = refused(tmp_path, {"merge_method": "concat", "models": [{"model": str(each)} for each in both]})
    assert "a holds 'model.norm.weight' whole, and the others hold other values" in said
    assert "org/base cannot be opened" in said
    assert "add `base_model: PATH_OR_HUB_ID` to the recipe" in said
    assert "--embed-lora, -e REGEX" in said


def test_what_cannot_be_merged_is_refused_by_name(tmp_path: Path, adapters: list[Path]) -> None:
    small = write_adapter(tmp_path / "small", {Q0: 2}, {Q0: (24, 10)}, seed=9)
    dora = write_adapter(tmp_path / "dora", {Q0: 2}, SIDES, seed=9, use_dora=True)
    norm = {"model.norm.weight": np.ones(20, np.float32)}
    saved = write_adapter(tmp_path / "saved", {Q0: 2}, SIDES, seed=9, whole=norm, modules_to_save=["norm"])

    def pair(other: Path, method: str = "concat", **parameters: Any) -> Any:
        return {"merge_method": method, "models": [{"model": str(adapters[0])}, {"model": str(other)}],
                "parameters": {"weight": 1.0, **parameters}}  # fmt: skip

    assert "[24, 20] as in" in refused(tmp_path, pair(small))
    assert "DoRA" in refused(tmp_path, pair(dora))
    assert "model.norm.weight" in refused(tmp_path, pair(saved))
    assert "their ranks differ" in refused(tmp_path, pair(adapters[1], "task_arithmetic", space="factors"))
    assert "slerp acts on weights" in refused(tmp_path, pair(adapters[1], "slerp", t=0.5))
    assert "rank: 16" in refused(tmp_path, pair(adapters[1], "svd"))
    assert "unknown space 'cosy'" in refused(tmp_path, pair(adapters[1], "ties", space="cosy"))
    assert "rank must be" in refused(tmp_path, pair(adapters[1], "svd", rank=0))
    assert "no checkpoint at" in refused(tmp_path, pair(tmp_path / "nowhere"))
    (adapters[1] / "adapter_config.json").write_text("{")
    assert "is not JSON" in refused(tmp_path, pair(adapters[1]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("method", "space"), [("concat", {}), ("ties", {"space": "core"}), ("ties", {"space": "knots"})]
)
def test_a_damaged_adapter_is_named(
    tmp_path: Path, adapters: list[Path], method: str, space: dict[str, str], value: float
) -> None:
    file = adapters[1] / "adapter_model.safetensors"
    tensors = read_file(file)
    tensors[f"base_model.model.{O1}.lora_B.weight"][3, 1] = value
    write_tensors(file, tensors)
    models = [{"model": str(path), "parameters": {"weight": 1.0}} for path in adapters]
    said = refused(tmp_path, {"merge_method": method, "models": models, "parameters": space})
    name = f"base_model.model.{O1}.lora_A.weight"
    assert said.startswith(f"{adapters[1]} holds values that are not finite, and {name!r} is made of them")
    assert "1 NaN or infinite among 40" in said


def test_keys_that_need_models_are_told_to_have_no_effect(tmp_path: Path, adapters: list[Path]) -> None:
    recipe = {"merge_method": "concat", "models": [{"model": str(adapters[0])}], "base_model": "org/other@v2",
              "chat_template": "auto", "tokenizer_source": "union"}  # fmt: skip
    warnings = merge_lora(recipe, tmp_path / "out").warnings
    assert warnings == tuple(
        f"recipe: {key} has no effect where adapters are merged with each other"
        for key in ("tokenizer_source", "chat_template")
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/other", "v2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("ours", "theirs"), [("concat", "cat"), ("factors", "linear")])
def test_as_peft_adds_weighted_adapters(tmp_path: Path, ours: str, theirs: str) -> None:
    import peft

    from support.tuned import load, make_pair, merged, with_adapter

    base, _ = make_pair(tmp_path / "models", "llama")
    names = ("one", "two")
    for name in names:
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
                                 task_type="CAUSAL_LM")  # fmt: skip
        peft.get_peft_model(load(base), config).save_pretrained(tmp_path / name)
    model = with_adapter(base, tmp_path / "one")
    model.load_adapter(tmp_path / "two", "two")
    model.add_weighted_adapter(["default", "two"], [0.6, 0.3], "merged", combination_type=theirs)
    model.set_adapter("merged")
    space = {"space": "factors"} if ours == "factors" else {}
    method = "task_arithmetic" if ours == "factors" else "concat"
    out = merge(tmp_path / "out", [tmp_path / name for name in names], method, weights=(0.6, 0.3), **space)
    wanted, got = merged(model), merged(with_adapter(base, out))
    change = load(base).state_dict()
    for name, values in wanted.items():
        assert got[name] == pytest.approx(values, abs=2e-6), name
    moved = "model.layers.0.self_attn.q_proj.weight"
    assert np.abs(wanted[moved] - change[moved].numpy()).max() > 1e-3


def test_the_recipes_on_the_page_are_some() -> None:
    first, second = blocks(DOCS / "adapters.md", "yml")
    recipe = read_adapter_recipe(second.text)
    assert (recipe.method, str(recipe.base), recipe.warnings) == ("linear", "organisation/base", ())
    assert [str(ref) for ref in recipe.adapters] == ["./maths-adapter", "./code-adapter"]
    recipe = read_adapter_recipe(first.text)
    assert (recipe.method, recipe.space, recipe.rank) == ("ties", "core", 32)
    assert [str(ref) for ref in recipe.adapters] == ["someone/maths-lora", "./code-lora"]
    assert (recipe.warnings, recipe.base) == ((), None)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("concat", {}),
        ("ties", {"space": "core", "density": 0.5}),
        ("ties", {"space": "knots", "density": 0.5}),
        ("task_arithmetic", {"space": "factors"}),
    ],
)
def test_stages_scale_what_was_merged(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    weights = (0.7, -0.4)
    both = [write_adapter(tmp_path / n, {Q0: 3, Q1: 3}, SIDES, seed=i, alpha=5.0) for i, n in enumerate("ab")]
    plain = dense(merge(tmp_path / "plain", both, method, weights=weights, **options))
    lines = dense(merge(tmp_path / "lines", both, method, weights=weights, lines=[0.5, 3.0], **options))
    assert_same(lines, {Q0: 0.5 * plain[Q0], Q1: 3.0 * plain[Q1]})
    matched = merge(tmp_path / "matched", both, method, weights=weights, match_norm=True, **{"lambda": 9.0}, **options)
    for name, values in dense(matched).items():
        norms = [np.linalg.norm(dense(path)[name]) for path in both]
        wanted = (0.7 * norms[0] + 0.4 * norms[1]) / 1.1 / np.linalg.norm(plain[name])
        assert values == pytest.approx(wanted * plain[name], abs=1e-4 * norms[0])


def test_norms_are_matched_before_a_rank_cuts_and_absent_modules_count(tmp_path: Path, adapters: list[Path]) -> None:
    plain = dense(merge(tmp_path / "plain", adapters, "concat"))
    out = dense(merge(tmp_path / "out", adapters, "svd", rank=2, match_norm=True))
    norm = np.linalg.norm(updates(adapters)[1][O1]) * 0.4 / 2.2
    assert out[O1] == pytest.approx(plain[O1] * norm / np.linalg.norm(plain[O1]), abs=1e-5)
    u, s, vt = np.linalg.svd(plain[V0])
    norms = [np.linalg.norm(updates(adapters)[i][V0]) for i in (0, 2)]
    factor = (0.7 * norms[0] + 1.1 * norms[1]) / 2.2 / np.linalg.norm(s)
    assert out[V0] == pytest.approx(factor * (u[:, :2] * s[:2]) @ vt[:2], abs=1e-4)


@pytest.mark.parametrize(
    ("method", "scope"), [("ties", "trim_scope"), ("metagpt", "norm_scope"), ("nan", "norm_scope")]
)
def test_scans_of_whole_models_are_refused_by_name(tmp_path: Path, method: str, scope: str) -> None:
    both = [write_adapter(tmp_path / n, {Q0: 2, Q1: 2}, SIDES, seed=i) for i, n in enumerate("ab")]
    recipe = {"merge_method": method, "models": [{"model": str(path)} for path in both], "parameters": {}}
    if method == "ties":
        recipe["parameters"] = {"weight": 1.0, scope: "model"}
    assert f"{scope} of {method} is model" in refused(tmp_path, recipe)
    recipe["parameters"] = {**({"weight": 1.0} if method == "ties" else {}), scope: "tensor"}
    merge_lora(recipe, tmp_path / "out")
    assert dense(tmp_path / "out").keys() == {Q0, Q1}
