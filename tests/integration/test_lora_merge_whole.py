"""Tensors that adapters hold whole, merged as changes from the base: against float64, dense merges, and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cuvee
from cuvee.errors import CuveeError
from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora, merge_lora
from cuvee.options import MergeOptions
from support.adapter_files import PREFIX, write_adapter
from support.checkpoints import read_checkpoint, read_file, write_checkpoint
from support.tiny_models import Family, State
from support.tuned import load, logits, make_pair, weights, with_adapter

Q = "model.layers.0.self_attn.q_proj"
SIDES = {Q: (6, 4), "lm_head": (8, 4)}
WEIGHTS = (0.7, -0.4)
RNG = np.random.default_rng(21)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def extracted(llama: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two fine-tunes as adapters that lack nothing of them: factors of full rank, and all else whole."""
    folder = tmp_path_factory.mktemp("extracted")
    for name in "ab":
        extract_lora(str(llama.path(name)), str(llama.path("base")), folder / name, ExtractOptions(64, exact=True))
    return {name: folder / name for name in "ab"}


def entries(paths: list[Path], given: tuple[float, ...] = WEIGHTS) -> list[dict[str, Any]]:
    return [{"model": str(path), "parameters": {"weight": w}} for path, w in zip(paths, given, strict=True)]


def merge(
    out: Path, paths: list[Path], method: str = "concat", base: Path | str | None = None, **parameters: Any
) -> Path:
    given = parameters.pop("weights", WEIGHTS)
    recipe: dict[str, Any] = {"merge_method": method, "models": entries(paths, given), "parameters": parameters}
    merge_lora(recipe | ({"base_model": str(base)} if base else {}), out)
    return out


def applied(base: Path, adapter: Path, out: Path) -> State:
    """The base with an adapter on it, as a checkpoint."""
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}], "dtype": "float32"}, out)
    return read_checkpoint(out)


def small(folder: Path, **more: Any) -> tuple[Path, State]:
    """A base of few tensors."""
    state = {f"{Q}.weight": array(6, 4), f"{Q}.bias": array(6), "model.norm.weight": array(4),
             "lm_head.weight": array(8, 4), "model.embed_tokens.weight": array(8, 4)}  # fmt: skip
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    return write_checkpoint(folder, state, config | more), state


def adapter(folder: Path, seed: int, whole: State, base: Path | str = "org/base", **more: Any) -> Path:
    return write_adapter(folder, more.pop("modules", {Q: 2}), SIDES, seed=seed, whole=whole,
                         base_model_name_or_path=str(base), **more)  # fmt: skip


def whole_of(folder: Path, name: str) -> Any:
    return read_file(folder / "adapter_model.safetensors")[PREFIX + name]


@pytest.mark.parametrize(
    ("method", "parameters", "shares"),
    [
        ("concat", {}, (0.7, -0.4)),
        ("concat", {"normalize": True, "lambda": 0.5}, (0.35 / 0.3, -0.2 / 0.3)),
        ("task_arithmetic", {"lambda": 2.0}, (1.4, -0.8)),
        ("linear", {}, (0.7 / 0.3, -0.4 / 0.3)),
        ("linear", {"normalize": False}, (0.7, -0.4)),
    ],
)
def test_merged_adapters_are_the_dense_merge(
    llama: Family, extracted: dict[str, Path], tmp_path: Path, method: str, parameters: dict[str, Any],
    shares: tuple[float, float],
) -> None:  # fmt: skip
    out = merge(tmp_path / "out", [*extracted.values()], method, **parameters)
    got = applied(llama.path("base"), out, tmp_path / "applied")
    base = llama.exact("base")
    for name, values in base.items():
        wanted = values + sum(s * (llama.exact(n)[name] - values) for n, s in zip("ab", shares, strict=True))
        tolerance = 1e-6 if name.endswith("norm.weight") or "layers" not in name else 4e-6
        assert got[name] == pytest.approx(wanted, abs=tolerance * abs(wanted).max()), name
    assert got.keys() == base.keys()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.4}),
        ("sce", {"select_topk": 0.3}),
        ("model_stock", {}),
        ("breadcrumbs", {"density": 0.6}),
        ("task_arithmetic", {"lines": [0.5, 3.0], "match_norm": True}),
    ],
)
def test_what_is_held_whole_is_what_the_method_makes_of_the_models(
    llama: Family, extracted: dict[str, Path], tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    merge(tmp_path / "out", [*extracted.values()], method, **parameters)
    models = entries([llama.path(name) for name in "ab"])
    cuvee.merge({"merge_method": method, "base_model": str(llama.path("base")), "models": models,
                 "parameters": parameters}, tmp_path / "dense")  # fmt: skip
    wanted = read_checkpoint(tmp_path / "dense")
    whole = {n: v for n, v in read_file(tmp_path / "out/adapter_model.safetensors").items() if ".lora_" not in n}
    assert len(whole) == 9
    for name, values in whole.items():
        assert values.tobytes() == wanted[name.removeprefix(PREFIX)].tobytes(), name


def test_an_adapter_without_the_tensor_changes_nothing_there(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base")
    norm, bias, head = array(4), array(6), array(8, 4)
    a = adapter(tmp_path / "a", 1, {"model.norm.weight": norm, f"{Q}.base_layer.bias": bias}, base, bias="all",
                modules_to_save=["norm"])  # fmt: skip
    b = adapter(tmp_path / "b", 2, {"lm_head.weight": head}, base, modules_to_save=["lm_head"])
    out = merge(tmp_path / "out", [a, b])
    for name, values, weight in [("model.norm.weight", norm, 0.7), (f"{Q}.base_layer.bias", bias, 0.7),
                                 ("lm_head.weight", head, -0.4)]:  # fmt: skip
        own = state[name.replace(".base_layer", "")].astype(np.float64)
        assert whole_of(out, name) == pytest.approx(own + weight * (values - own), abs=1e-6), name
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["bias"], config["target_modules"]) == (
        ["norm", "lm_head"],
        "all",
        ["q_proj"],
    )
    mean = merge(tmp_path / "mean", [a, b], "linear", weights=(1.0, 3.0))
    own = state["model.norm.weight"].astype(np.float64)
    assert whole_of(mean, "model.norm.weight") == pytest.approx(own + 0.25 * (norm - own), abs=1e-6)


def test_what_one_holds_whole_and_another_as_factors_is_whole(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base")
    head = array(8, 4)
    a = adapter(tmp_path / "a", 1, {"lm_head.weight": head}, base, modules_to_save=["lm_head"])
    b = adapter(tmp_path / "b", 2, {}, base, modules={Q: 2, "lm_head": 2}, alpha=6.0)
    out = merge(tmp_path / "out", [a, b])
    tensors = read_file(b / "adapter_model.safetensors")
    down, up = (tensors[f"{PREFIX}lm_head.lora_{half}.weight"].astype(np.float64) for half in "AB")
    own = state["lm_head.weight"].astype(np.float64)
    assert whole_of(out, "lm_head.weight") == pytest.approx(own + 0.7 * (head - own) - 0.4 * 3 * up @ down, abs=1e-5)
    assert not any("lm_head.lora" in name for name in read_file(out / "adapter_model.safetensors"))
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["target_modules"], config["modules_to_save"]) == ([Q], ["lm_head"])


def test_dtypes_are_as_in_a_dense_merge(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base")
    values = [array(4).astype(ml_dtypes.bfloat16) for _ in "ab"]
    pair = [adapter(tmp_path / n, i, {"model.norm.weight": v}, base, modules_to_save=["norm"])
            for i, (n, v) in enumerate(zip("ab", values, strict=True))]  # fmt: skip
    own = state["model.norm.weight"].astype(np.float64)
    wanted = own + sum(w * (v.astype(np.float64) - own) for w, v in zip(WEIGHTS, values, strict=True))
    got = whole_of(merge(tmp_path / "wide", pair), "model.norm.weight")
    assert (got.dtype, got == pytest.approx(wanted, abs=1e-6)) == (np.float32, True)
    merge_lora({"merge_method": "concat", "dtype": "bfloat16", "models": entries(pair)}, tmp_path / "narrow")
    got = whole_of(tmp_path / "narrow", "model.norm.weight")
    assert got.dtype == ml_dtypes.bfloat16
    assert got.tobytes() == wanted.astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()


def test_parameters_are_the_tensor_s_own(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base")
    whole = {"model.norm.weight": array(4), "model.embed_tokens.weight": array(8, 4)}
    a = adapter(tmp_path / "a", 1, whole, base)
    b = adapter(tmp_path / "b", 2, {}, base)
    models = entries([a, b])
    models[0]["parameters"]["weight"] = [{"filter": "norm", "value": 3.0}, {"value": 0.5}]
    merge_lora(
        {"merge_method": "task_arithmetic", "models": models, "parameters": {"lines": [2.0, 5.0]}}, tmp_path / "out"
    )
    for name, factor in [("model.norm.weight", 3.0 * 5.0), ("model.embed_tokens.weight", 0.5 * 2.0)]:
        own = state[name].astype(np.float64)
        assert whole_of(tmp_path / "out", name) == pytest.approx(own + factor * (whole[name] - own), abs=1e-5), name


def test_the_recipe_s_base_counts_before_the_adapters_and_may_be_listed(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base")
    pair = [
        adapter(tmp_path / n, i, {"model.norm.weight": array(4)}, base=f"elsewhere/{n}") for i, n in enumerate("ab")
    ]
    own = state["model.norm.weight"].astype(np.float64)
    wanted = own + sum(w * (whole_of(p, "model.norm.weight") - own) for w, p in zip(WEIGHTS, pair, strict=True))
    out = merge(tmp_path / "out", pair, "task_arithmetic", base)
    assert whole_of(out, "model.norm.weight") == pytest.approx(wanted, abs=1e-6)
    recipe = {"merge_method": "task_arithmetic", "base_model": {"path": str(base)},
              "models": [{"model": str(base)}, *entries(pair)]}  # fmt: skip
    report = merge_lora(recipe, tmp_path / "listed")
    assert (
        read_file(tmp_path / "listed/adapter_model.safetensors").keys()
        == read_file(out / "adapter_model.safetensors").keys()
    )
    assert (report.whole, report.warnings) == (1, ())
    card = (out / "README.md").read_text()
    assert "1 tensors are held whole: 1 merged as changes from `base`." in card
    assert str(base) not in card.partition("## Recipe")[0]
    assert 'from_pretrained("base")' in card


def test_what_all_hold_alike_needs_no_base_and_is_taken_as_it_is(tmp_path: Path) -> None:
    norm, odd = array(4), np.array([np.inf, 1, 2, -np.inf], np.float32)
    pair = [adapter(tmp_path / n, i, {"model.norm.weight": norm, "odd": odd, "count": np.array([2**60 + 1])})
            for i, n in enumerate("ab")]  # fmt: skip
    out = merge(tmp_path / "out", pair)
    assert whole_of(out, "model.norm.weight").tobytes() == norm.tobytes()
    assert whole_of(out, "odd").tobytes() == odd.tobytes()
    assert whole_of(out, "count")[0] == 2**60 + 1
    assert "3 tensors are held whole: 3 as they are in all adapters." in (out / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_a_tied_model_answers_as_the_dense_merge(tmp_path: Path) -> None:
    import torch

    def other(name: str, values: Any, generator: Any) -> Any:
        return 0.03 * torch.randn(values.shape, generator=generator.manual_seed(sum(name.encode())))

    base, one = make_pair(tmp_path / "1", "qwen2")
    _, two = make_pair(tmp_path / "2", "qwen2", other)
    for tuned, name in ((one, "a"), (two, "b")):
        extract_lora(str(tuned), str(base), tmp_path / name, ExtractOptions(64, exact=True))
    out = merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    states = [weights(load(path)) for path in (base, one, two)]
    dense = load(base)
    dense.load_state_dict({
        name: torch.tensor(own + sum(w * (each[name] - own) for w, each in zip(WEIGHTS, states[1:], strict=True)))
        for name, own in states[0].items()
    })  # fmt: skip
    assert logits(with_adapter(base, out)) == pytest.approx(logits(dense), abs=2e-5)
    assert abs(logits(dense) - logits(load(base))).max() > 1e-2
    got = applied(base, out, tmp_path / "applied")
    assert "lm_head.weight" not in got  # the adapter holds it twice, and it stays tied
    embedding = states[0]["model.embed_tokens.weight"]
    wanted = embedding + sum(
        w * (s["model.embed_tokens.weight"] - embedding) for w, s in zip(WEIGHTS, states[1:], strict=True)
    )
    assert got["model.embed_tokens.weight"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_only_one_adapter_tells_apart_from_a_tied_embedding(tmp_path: Path) -> None:
    base, state = small(tmp_path / "base", tie_word_embeddings=True)
    del state["lm_head.weight"]
    write_checkpoint(base, state)
    head = array(8, 4)
    a = adapter(tmp_path / "a", 1, {"lm_head.weight": head}, base, modules_to_save=["lm_head"])
    out = merge(tmp_path / "out", [a, adapter(tmp_path / "b", 2, {}, base)])
    own = state["model.embed_tokens.weight"].astype(np.float64)
    assert whole_of(out, "lm_head.weight") == pytest.approx(own + 0.7 * (head - own), abs=1e-6)


def refused(recipe: Any, out: Path) -> str:
    with pytest.raises(CuveeError) as caught:
        merge_lora(recipe, out)
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()
    return str(caught.value)


def test_what_cannot_be_merged_says_which_setting_helps(tmp_path: Path) -> None:
    base, _ = small(tmp_path / "base")
    norm = [adapter(tmp_path / n, i, {"model.norm.weight": array(4)}, b) for i, (n, b) in
            enumerate([("none", ""), ("lost", "/nowhere/base"), ("here", base)])]  # fmt: skip
    plain = adapter(tmp_path / "plain", 4, {}, base)

    def said(*paths: Path, **more: Any) -> str:
        return refused(
            {"merge_method": "concat", "models": [{"model": str(p)} for p in paths], **more}, tmp_path / "out"
        )

    assert "none holds 'model.norm.weight' whole, and the others hold other values" in said(norm[0], norm[0], norm[1])
    assert "the adapters name /nowhere/base, which is not here" in said(norm[0], norm[1])
    assert f"the adapters name different ones: /nowhere/base, {base}" in said(norm[1], norm[2])
    lacking = said(norm[0], adapter(tmp_path / "p", 4, {}, ""))
    assert "p does not: what that changes cannot be told without the base model" in lacking
    assert "no adapter names its base model" in lacking
    assert "add `base_model: PATH_OR_HUB_ID` to the recipe" in lacking
    assert "no checkpoint at" in said(norm[1], plain, base_model=str(tmp_path / "gone"))
    assert "a model reference must be text" in said(norm[1], plain, base_model=5)

    tall = adapter(tmp_path / "tall", 1, {"lm_head.weight": array(9, 4)}, base, modules_to_save=["lm_head"])
    shapes = said(tall, plain)
    assert f"[8, 4] as in {base}" in shapes
    assert f"[9, 4] in {tall}" in shapes
    task = adapter(tmp_path / "task", 1, {"score.weight": array(2, 4)}, base, modules_to_save=["score"])
    assert f"{base} has no such tensor" in said(task, plain)
    count = adapter(tmp_path / "count", 1, {"model.steps": np.arange(3)}, base)
    assert "in values that cannot be merged" in said(count, plain)
    other, _ = small(tmp_path / "other")
    write_checkpoint(other, {"model.norm.weight": array(4)})
    assert "was made for another base" in said(norm[2], plain, base_model=str(other))


@pytest.mark.parametrize("place", ["base", "a"])
def test_damaged_values_are_named(tmp_path: Path, place: str) -> None:
    base, state = small(tmp_path / "base")
    broken = np.array([1, np.nan, 2, 3], np.float32)
    if place == "base":
        write_checkpoint(base, state | {"model.norm.weight": broken})
    a = adapter(tmp_path / "a", 1, {"model.norm.weight": broken if place == "a" else array(4)}, base)
    plain = adapter(tmp_path / "plain", 4, {}, base)
    with pytest.raises(CuveeError) as caught:
        merge_lora({"merge_method": "concat", "models": [{"model": str(a)}, {"model": str(plain)}]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    said = str(caught.value)
    assert f"of {tmp_path / place} holds values that are not finite" in said


def test_threads_and_blocks_do_not_matter(extracted: dict[str, Path], tmp_path: Path) -> None:
    recipe = {"merge_method": "dare_ties", "models": entries([*extracted.values()]), "parameters": {"density": 0.5}}
    for name, options in {"one": MergeOptions(threads=1), "two": MergeOptions(threads=2, processes=2)}.items():
        report = merge_lora(recipe, tmp_path / name, options)
        assert report.peak_memory > 0
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
