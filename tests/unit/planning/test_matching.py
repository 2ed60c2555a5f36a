"""The rule for every kind of tensor that only some models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import PlanError
from cuvee.planning.ops import Plan
from support.checkpoints import Array
from unit.planning.plans import LAYER, Models, linear, llama, stack

NORM = "model.norm.weight"
EXTRA = "model.extra.weight"


@pytest.fixture
def models(tmp_path: Path) -> Models:
    found = Models(tmp_path)
    found.add("a")
    found.add("extra", llama() | {EXTRA: np.ones((2, 2), np.float32)})
    return found


def made(plan: Plan) -> dict[str, tuple[str | None, list[str]]]:
    """Output tensor -> method and the models it is made of."""
    return {op.name: (op.method, [plan.models[i].name for i in op.models]) for op in plan.ops}


def decided(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {decision.rule: decision.tensors for decision in plan.decisions}


def dropped(plan: Plan) -> list[tuple[str, str]]:
    return [(plan.models[i].name, name) for i, name in plan.dropped]


@pytest.mark.parametrize("missing", [{}, {"missing": "error"}])
def test_error_is_the_rule_unless_the_recipe_says_otherwise(missing: dict[str, str], models: Models) -> None:
    with pytest.raises(PlanError, match="do not hold the same tensors") as caught:
        models.plan(linear("a", "extra", **missing))
    assert "missing: base" in (caught.value.fix or "")


def test_base_copies_what_the_base_has_alone(models: Models) -> None:
    plan = models.plan(linear("extra", "a", missing="base"))
    assert made(plan)[EXTRA] == (None, ["extra"])
    assert made(plan)[NORM] == ("linear", ["extra", "a"])
    assert decided(plan) == {"copied from extra: absent from a": (EXTRA,)}
    assert dropped(plan) == []


def test_base_leaves_out_what_the_base_lacks(models: Models) -> None:
    plan = models.plan(linear("a", "extra", missing="base"))
    assert set(made(plan)) == set(llama())
    assert decided(plan) == {"left out: absent from a": (EXTRA,)}
    assert dropped(plan) == [("extra", EXTRA)]


def test_the_base_is_the_base_model_wherever_it_is_listed(models: Models) -> None:
    recipe = linear("a", "extra", missing="base") | {"merge_method": "task_arithmetic", "base_model": "extra"}
    assert made(models.plan(recipe))[EXTRA] == (None, ["extra"])


@pytest.mark.parametrize("order", [("a", "extra"), ("extra", "a")])
def test_skip_keeps_what_all_models_have(order: tuple[str, str], models: Models) -> None:
    plan = models.plan(linear(*order, missing="skip"))
    assert set(made(plan)) == set(llama())
    assert decided(plan) == {"left out: absent from a": (EXTRA,)}
    assert dropped(plan) == [("extra", EXTRA)]


def test_extra_layers(models: Models) -> None:
    models.add("deep", llama(4))
    with pytest.raises(PlanError) as caught:
        models.plan(linear("a", "deep"))
    assert "a lacks 4 of 19 (model.layers.3." in (caught.value.found or "")
    plan = models.plan(linear("a", "deep", missing="base"))
    assert {name for model, name in dropped(plan)} == {f"model.layers.3.{rest}" for rest in LAYER}


def test_unknown_words_are_refused(models: Models) -> None:
    with pytest.raises(Exception, match="unknown missing 'bass'") as caught:
        models.plan(linear("a", "extra", missing="bass"))
    assert getattr(caught.value, "fix", None) == "did you mean base?"


INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def with_buffer(name: str, value: Array) -> dict[str, Array]:
    return llama() | {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (INV_FREQ, np.ones(4, np.float32)),
        ("bert.embeddings.position_ids", np.arange(6).reshape(1, 6)),
        ("h.0.attn.bias", np.tril(np.ones((1, 1, 4, 4), np.float32))),
        ("h.0.attn.masked_bias", np.array(-1e9, np.float32)),
    ],
)
def test_computed_buffers_follow_the_base(name: str, value: Array, models: Models) -> None:
    models.add("old", with_buffer(name, value))
    without = models.plan(linear("a", "old"))
    assert set(made(without)) == set(llama())
    assert decided(without) == {"left out: absent from a": (name,)}
    assert dropped(without) == [("old", name)]
    plan = models.plan(linear("old", "a"))
    assert made(plan)[name] == (None, ["old"])
    assert dropped(plan) == []


def test_a_bias_is_no_mask(models: Models) -> None:
    models.add("biased", with_buffer("h.0.attn.bias", np.ones(4, np.float32)))
    with pytest.raises(PlanError):
        models.plan(linear("a", "biased"))


def test_computed_buffers_are_not_averaged(models: Models) -> None:
    """With two kinds of rope the mean of the frequencies is neither; the base's config goes with the base's."""
    for number, name in enumerate(("x", "y"), 1):
        models.add(name, with_buffer(INV_FREQ, np.full(4, number, np.float32)))
    plan = models.plan(linear("x", "y"))
    assert made(plan)[INV_FREQ] == (None, ["x"])
    assert dropped(plan) == []


def test_counters_of_training_steps_need_not_agree(models: Models) -> None:
    name = "model.layers.0.conv.norm.num_batches_tracked"
    for model, steps in (("x", 5), ("y", 7)):
        models.add(model, with_buffer(name, np.array(steps)))
    assert made(models.plan(linear("x", "y")))[name] == (None, ["x"])


def test_integers_that_all_models_have_must_agree(models: Models) -> None:
    for name in ("x", "y"):
        models.add(name, with_buffer("model.position_ids", np.arange(6)))
    assert made(models.plan(linear("x", "y")))["model.position_ids"] == (None, ["x", "y"])


TIED = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "tie_word_embeddings": True}
SILENT = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}


def test_tied_models_make_a_tied_one(models: Models) -> None:
    for name in ("x", "y"):
        models.add(name, llama(head=False), TIED)
    plan = models.plan(linear("x", "y"))
    assert set(made(plan)) == set(llama(head=False))
    assert plan.config_edits == {}


@pytest.mark.parametrize("order", [("tied", "a"), ("a", "tied")])
def test_tied_and_untied_make_an_untied_one_and_the_config_says_so(order: tuple[str, str], models: Models) -> None:
    models.add("tied", llama(head=False), TIED)
    plan = models.plan(linear(*order))
    assert made(plan)["lm_head.weight"] == ("linear", list(order))
    assert plan.config_edits == ({"tie_word_embeddings": False} if order[0] == "tied" else {})
    assert [rule for rule in decided(plan) if "tied" in rule]


def test_a_nested_config_is_untied_too(models: Models) -> None:
    nested = {**SILENT, "text_config": {"tie_word_embeddings": True}}
    models.add("tied", llama(head=False), nested)
    edits = models.plan(linear("tied", "a")).config_edits
    assert edits == {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False}


@pytest.mark.parametrize("config", [SILENT, TIED])
def test_a_config_stays_where_the_base_stores_its_head(config: dict[str, Any], models: Models) -> None:
    """Whether it is tied to something else, or its class wants it so: the config was right for these tensors."""
    for name in ("x", "y"):
        models.add(name, llama(), config)
    assert models.plan(linear("x", "y")).config_edits == {}


def test_a_head_of_an_unknown_name_is_a_head(models: Models) -> None:
    body = llama(head=False) | {"model.to_tokens.weight": np.ones((4, 3), np.float32)}
    for name in ("x", "y"):
        models.add(name, body)  # the config says: not tied
    plan = models.plan(linear("x", "y"))
    assert set(made(plan)) == set(body)


MLM = "cls.predictions.decoder.weight"


def encoder(*heads: str) -> dict[str, Array]:
    """A BERT of one layer, and the tensors of its head."""
    names = ("embeddings.word_embeddings.weight", *(f"encoder.layer.0.{rest}" for rest in LAYER), *heads)
    return {name: np.full((4, 3), number, np.float32) for number, name in enumerate(names)}


PREDICTIONS = ("cls.predictions.bias", "cls.predictions.transform.dense.weight")


@pytest.mark.parametrize(
    "config", [{}, {"architectures": ["BertModel"]}, {"architectures": ["BertForTokenClassification"]}]
)
def test_an_encoder_gets_no_head_of_which_it_has_nothing(config: dict[str, Any], models: Models) -> None:
    models.add("encoder", encoder(), {"model_type": "bert", **config})
    models.add("mlm", encoder(*PREDICTIONS, MLM), {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    plan = models.plan(linear("encoder", "mlm", missing="base"))
    assert set(made(plan)) == set(encoder())
    assert plan.config_edits == {}
    assert {rule: set(names) for rule, names in decided(plan).items()} == {
        "left out: absent from encoder": {*PREDICTIONS, MLM}
    }
    with pytest.raises(PlanError) as caught:
        models.plan(linear("encoder", "mlm"))
    assert "encoder lacks 3 of 8" in (caught.value.found or "")


def test_a_class_without_a_head_gets_none(models: Models) -> None:
    models.add("body", llama(head=False), {**SILENT, "architectures": ["LlamaModel"]})
    assert set(made(models.plan(linear("body", "a", missing="base"), allow_crimes=True))) == set(llama(head=False))


@pytest.mark.parametrize("config", [{}, {"architectures": ["BertForMaskedLM"]}])
def test_a_tied_decoder_beside_the_rest_of_its_head_is_the_embedding(config: dict[str, Any], models: Models) -> None:
    models.add("tied", encoder(*PREDICTIONS), {"model_type": "bert", **config})
    models.add("untied", encoder(*PREDICTIONS, MLM), {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    plan = models.plan(linear("tied", "untied"))
    assert made(plan)[MLM] == ("linear", ["tied", "untied"])
    assert plan.config_edits == {"tie_word_embeddings": False}


@pytest.mark.parametrize("order", [("once", "thrice"), ("thrice", "once")])
def test_what_encoder_and_decoder_share_may_be_stored_once(order: tuple[str, str], models: Models) -> None:
    """Flan-T5 lies on the Hub with the shared embedding under three names; saved again, it has one."""
    body = {"shared.weight": np.ones((4, 3), np.float32), "lm_head.weight": np.zeros((4, 3), np.float32)}
    copies = {f"{part}.embed_tokens.weight": body["shared.weight"] for part in ("encoder", "decoder")}
    untied = {"model_type": "t5", "tie_word_embeddings": False}
    models.add("once", body, untied)
    models.add("thrice", body | copies, untied)
    plan = models.plan(linear(*order))
    assert set(made(plan)) == set(body | copies)
    shared = next(op for op in plan.ops if op.name == "shared.weight")
    for op in plan.ops:
        if op.name in copies:
            assert op.sources[order.index("once")] == shared.sources[order.index("once")]


def test_other_architectures_are_merged_where_they_fit(models: Models) -> None:
    other = {**llama(), NORM: np.ones((7, 3), np.float32), EXTRA: np.ones(2, np.float32)}
    del other["model.layers.0.mlp.up.weight"]
    models.add("other", other, {"architectures": ["OtherForCausalLM"], "tie_word_embeddings": False})
    with pytest.raises(PlanError, match="different architectures"):
        models.plan(linear("a", "other"))
    plan = models.plan(linear("a", "other"), allow_crimes=True)
    assert set(made(plan)) == set(llama())
    assert {name for name, (method, _) in made(plan).items() if method is None} == {
        NORM,
        "model.layers.0.mlp.up.weight",
    }
    assert decided(plan) == {
        "copied from a: the shapes differ": (NORM,),
        "copied from a: absent from other": ("model.layers.0.mlp.up.weight",),
        "left out: absent from a": (EXTRA,),
    }
    models.add("stranger", {"x.weight": np.ones(2, np.float32)}, {"architectures": ["Stranger"]})
    with pytest.raises(PlanError, match="no tensor of stranger fits"):
        models.plan(linear("a", "stranger"), allow_crimes=True)


def test_what_no_module_claims_is_the_base_s(models: Models) -> None:
    one = np.ones((2, 2), np.float32)
    vision = {f"visual.blocks.{i}.{rest}": one for i in range(2) for rest in LAYER}
    models.add("vl", llama() | vision, {"architectures": ["QwenVL"], "tie_word_embeddings": False})
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "modules": {"text_decoder": {"models": [{"model": "vl"}, {"model": "a"}]}},
    }
    with pytest.raises(PlanError, match="8 tensors of vl belong to none") as caught:
        models.plan({**recipe, "missing": "error"}, allow_crimes=True)
    assert "missing: base" in (caught.value.fix or "")
    plan = models.plan({**recipe, "missing": "base"}, allow_crimes=True)
    assert {name for name, (method, of) in made(plan).items() if method is None and of == ["vl"]} == set(vision)
    assert {name for name, (method, _) in made(plan).items() if method == "linear"} == set(llama())


def mtp(layers: int) -> dict[str, Array]:
    return llama(layers + 1)


def test_layers_beyond_the_config_s_count_go_along_with_slices(models: Models) -> None:
    """DeepSeek-V3 keeps its layer for multi-token prediction at the number after the last."""
    models.add("mtp", mtp(3))
    plan = models.plan(stack(("mtp", 0, 2), ("mtp", 1, 3)))
    layers = {name.split(".")[2] for name in made(plan) if ".layers." in name}
    assert layers == {"0", "1", "2", "3", "4"}
    last = next(op for op in plan.ops if op.name == f"model.layers.4.{LAYER[0]}")
    source = next(op for op in models.plan(linear("mtp", "mtp")).ops if op.name == f"model.layers.3.{LAYER[0]}")
    assert last.sources == source.sources[:1]
    assert plan.config_edits == {"num_hidden_layers": 4}
    with pytest.raises(PlanError, match="leaves model mtp") as caught:
        models.plan(stack(("mtp", 0, 4)))
    assert caught.value.expected == "at most [0, 3]"


def hybrid(kinds: str) -> dict[str, Array]:
    """A layer of kind `a` has attention, one of kind `m` a mixer."""
    one = np.ones((2, 2), np.float32)
    names = {"a": "self_attn", "m": "mixer"}
    layers = {f"model.layers.{i}.{names[kind]}.{rest}.weight": one for i, kind in enumerate(kinds) for rest in "qkvo"}
    return {"model.embed_tokens.weight": one, **layers, NORM: one, "lm_head.weight": one}


PERIODIC = {"architectures": ["J"], "num_hidden_layers": 8, "attn_period": 4, "tie_word_embeddings": False}


@pytest.mark.parametrize("pieces", [[(0, 4)], [(0, 8), (0, 8)], [(4, 8), (0, 4), (0, 4)], [(0, 8), (4, 6)]])
def test_layers_of_a_pattern_may_move_by_whole_periods(pieces: list[tuple[int, int]], models: Models) -> None:
    models.add("h", hybrid("mmmammma"), PERIODIC)
    total = sum(stop - start for start, stop in pieces)
    plan = models.plan(stack(*(("h", *piece) for piece in pieces)))
    assert plan.config_edits == ({"num_hidden_layers": total} if total != 8 else {"num_hidden_layers": 8})


@pytest.mark.parametrize("pieces", [[(1, 5)], [(0, 2), (4, 8)], [(0, 8), (3, 8)]])
def test_layers_of_a_pattern_may_not_move_out_of_it(pieces: list[tuple[int, int]], models: Models) -> None:
    models.add("h", hybrid("mmmammma"), PERIODIC)
    with pytest.raises(PlanError, match="of another kind than its config says"):
        models.plan(stack(*(("h", *piece) for piece in pieces)))


def test_layers_that_grow_may_not_move(models: Models) -> None:
    """The stages of Swin: one kind of layer, each wider than the last, and no list in the config that says so."""
    tensors = llama()
    for layer, width in enumerate((4, 8, 8)):
        tensors |= {f"model.layers.{layer}.{rest}": np.ones((width, 3), np.float32) for rest in LAYER}
    models.add("stages", tensors)
    with pytest.raises(PlanError, match="layer 1 of the output would have other shapes") as caught:
        models.plan(stack(("stages", 0, 1), ("stages", 0, 3)))
    assert caught.value.found == "layer 0"
    assert len(made(models.plan(stack(("stages", 0, 2))))) == 3 + 2 * len(LAYER)
    models.add("lists", tensors, {"num_hidden_layers": 3, "intermediate_size": [4, 8, 8], "tie_word_embeddings": False})
    assert models.plan(stack(("lists", 1, 3))).config_edits == {"num_hidden_layers": 2, "intermediate_size": [8, 8]}


@pytest.mark.parametrize("parts", [3, 2])
def test_the_number_of_layers_stays_where_something_outside_counts_them(parts: int, models: Models) -> None:
    """YOLOS keeps positions for every pair of neighbouring layers in one tensor."""
    tensors = llama() | {"model.mid_position_embeddings": np.ones((parts, 1, 4), np.float32)}
    for layer in range(3):
        tensors |= {f"model.layers.{layer}.{rest}": np.ones((4, 3), np.float32) for rest in LAYER}
    models.add("yolos", tensors)
    with pytest.raises(PlanError, match="mid_position_embeddings' lies outside the layers") as caught:
        models.plan(stack(("yolos", 0, 2)))
    assert caught.value.expected == "as many layers as yolos has: 3"
    assert models.plan(stack(("yolos", 0, 1), ("yolos", 1, 3))).ops


def test_layers_whose_kinds_the_config_lists_move_freely(models: Models) -> None:
    models.add("h", hybrid("mmmammma"), {**PERIODIC, "layer_types": list("mmmammma")})
    plan = models.plan(stack(("h", 1, 5)))
    assert plan.config_edits == {"num_hidden_layers": 4, "layer_types": list("mmam")}
