from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import PlanError
from cuvee.planning.outline import Outline, outline
from support.checkpoints import Array
from unit.planning.plans import LAYER, Models, linear, llama, stack


@pytest.fixture
def models(tmp_path: Path) -> Models:
    found = Models(tmp_path)
    found.add("a")
    found.add("b")
    return found


def outlined(models: Models, recipe: dict[str, Any]) -> Outline:
    return outline(*models.open(recipe))


def test_whole_models_are_matched_by_name(models: Models) -> None:
    found = outlined(models, linear("a", "b"))
    assert {w.name: w.inputs for w in found.tensors} == {name: (name, name) for name in llama()}
    at = {w.name: w.t for w in found.tensors}
    assert [at[f"model.layers.{i}.mlp.up.weight"] for i in range(3)] == [0, 0.5, 1]
    assert at["model.embed_tokens.weight"] == at["lm_head.weight"] == 0
    assert found.cuts == {}


def test_slices_are_numbered_through(models: Models) -> None:
    found = outlined(models, stack(("a", 0, 2), ("b", 1, 3)))
    expected = {"model.embed_tokens.weight": "a", "model.norm.weight": "b", "lm_head.weight": "b"}
    sources = {w.name: (w.slice_.sources[0].model.path, w.inputs[0]) for w in found.tensors}
    assert {name: sources.pop(name) for name in expected} == {name: (model, name) for name, model in expected.items()}
    layers = [("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert sources == {
        f"model.layers.{i}.{rest}": (model, f"model.layers.{layer}.{rest}")
        for i, (model, layer) in enumerate(layers)
        for rest in LAYER
    }
    at = {w.name: w.t for w in found.tensors}
    assert [at[f"model.layers.{i}.mlp.up.weight"] for i in range(4)] == [0, 1, 0, 1]
    assert [(cut.stack, cut.kept) for cut in found.cuts.values()] == [("model.layers", (0, 1, 1, 2))]


def test_a_slice_of_one_layer_is_at_the_end(models: Models) -> None:
    found = outlined(models, stack(("a", 2, 3)))
    assert {w.t for w in found.tensors if ".layers." in w.name} == {1.0}
    assert {w.inputs[0] for w in found.tensors if ".layers." in w.name} == {f"model.layers.2.{rest}" for rest in LAYER}


def test_sources_of_a_slice_may_start_at_different_layers(models: Models) -> None:
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}},
                                {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 1}}]}],
    }  # fmt: skip
    found = {w.name: w.inputs for w in outlined(models, recipe).tensors}
    assert found["model.layers.1.mlp.up.weight"] == ("model.layers.1.mlp.up.weight", "model.layers.2.mlp.up.weight")


def test_layers_that_a_model_does_not_have(models: Models) -> None:
    with pytest.raises(PlanError, match=r"layer_range \[1, 4\] leaves model b") as caught:
        outlined(models, stack(("a", 0, 2), ("b", 1, 4)))
    assert caught.value.expected == "at most [0, 3]"


def test_tensors_without_a_counterpart_are_named_with_their_models(models: Models) -> None:
    models.add("c", llama(2))
    with pytest.raises(PlanError, match="do not hold the same tensors") as caught:
        outlined(models, linear("a", "c"))
    assert "c lacks 4 of 15 (model.layers.2." in (caught.value.found or "")
    extra = llama() | {"model.extra.weight": np.ones((4, 3), np.float32)}
    models.add("d", extra)
    with pytest.raises(PlanError) as caught:
        outlined(models, linear("a", "d"))
    assert caught.value.found == "a lacks 1 of 16 (model.extra.weight)"


TIED = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "tie_word_embeddings": True}
NOT_TIED = TIED | {"tie_word_embeddings": False}


def test_a_tied_head_is_the_embedding(models: Models) -> None:
    models.add("tied", llama(head=False), TIED)
    found = {w.name: w.inputs for w in outlined(models, linear("a", "tied")).tensors}
    assert found["lm_head.weight"] == ("lm_head.weight", "model.embed_tokens.weight")
    assert found["model.embed_tokens.weight"] == ("model.embed_tokens.weight",) * 2


def test_heads_tied_in_all_models_are_not_made_up(models: Models) -> None:
    models.add("tied", llama(head=False), TIED)
    models.add("tied2", llama(head=False), TIED)
    assert "lm_head.weight" not in {w.name for w in outlined(models, linear("tied", "tied2")).tensors}


def test_a_head_that_the_config_asks_for_is_the_embedding(models: Models) -> None:
    models.add("headless", llama(head=False), NOT_TIED)
    found = outlined(models, linear("a", "headless"))
    inputs = {w.name: w.inputs for w in found.tensors}
    assert inputs["lm_head.weight"] == ("lm_head.weight", "model.embed_tokens.weight")
    assert [d.tensors for d in found.decisions] == [("lm_head.weight",)]
    assert "headless" in found.decisions[0].rule
    models.add("alone", llama(head=False) | {"model.norm.weight": np.ones(3, np.float32)}, NOT_TIED)
    alone = outlined(models, linear("alone", "alone"))
    assert {w.name: w.inputs for w in alone.tensors}["lm_head.weight"] == ("model.embed_tokens.weight",) * 2


def test_a_model_without_a_head_lacks_it(models: Models) -> None:
    """Its class has none, so nothing says that the embedding stands for it."""
    models.add("body", llama(head=False), {"architectures": ["LlamaModel"], "tie_word_embeddings": False})
    with pytest.raises(PlanError, match="do not hold the same tensors") as caught:
        outlined(models, linear("a", "body"))
    assert caught.value.found == "body lacks 1 of 15 (lm_head.weight)"
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}},
                                {"model": "body", "layer_range": [0, 2], "parameters": {"weight": 1}}]}],
    }  # fmt: skip
    with pytest.raises(PlanError, match="do not hold the same tensors"):
        outlined(models, recipe)


def test_layers_of_different_kinds_cannot_share_a_slice(models: Models) -> None:
    odd = {name: value for name, value in llama().items() if name != "model.layers.1.mlp.up.weight"}
    models.add("odd", odd)
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}},
                                {"model": "odd", "layer_range": [0, 2], "parameters": {"weight": 1}}]}],
    }  # fmt: skip
    with pytest.raises(PlanError, match="slice's layers do not hold the same tensors") as caught:
        outlined(models, recipe)
    assert caught.value.found == "layer 1 of the slice: odd lacks mlp.up.weight"


def two_stacks() -> dict[str, Array]:
    one = np.ones((2, 2), np.float32)
    layers = {f"{s}.block.{i}.{rest}": one for s in ("encoder", "decoder") for i in range(2) for rest in LAYER}
    return {"shared.weight": one, **layers, "encoder.norm.weight": one, "decoder.norm.weight": one}


def test_models_of_two_stacks_are_not_sliced_as_one(models: Models) -> None:
    models.add("t5", two_stacks(), {"num_layers": 2})
    with pytest.raises(PlanError, match="several stacks") as caught:
        outlined(models, stack(("t5", 0, 1)))
    assert set((caught.value.found or "").split(", ")) == {"encoder.block", "decoder.block"}


def test_modules_take_their_own_tensors(models: Models) -> None:
    models.add("t5", two_stacks(), {"num_layers": 2})
    recipe = {
        "merge_method": "passthrough",
        "modules": {
            "encoder": {"slices": [{"sources": [{"model": "t5", "layer_range": [0, 1]}]}]},
            "decoder": {"slices": [{"sources": [{"model": "t5", "layer_range": [0, 2]}]},
                                   {"sources": [{"model": "t5", "layer_range": [1, 2]}]}]},
            "shared": {"models": [{"model": "t5"}]},
        },
    }  # fmt: skip
    found = outlined(models, recipe)
    owner = {w.name: w.module.name for w in found.tensors}
    assert owner == {
        "shared.weight": "shared",
        "encoder.norm.weight": "encoder",
        "decoder.norm.weight": "decoder",
        **{f"encoder.block.0.{rest}": "encoder" for rest in LAYER},
        **{f"decoder.block.{i}.{rest}": "decoder" for i in range(3) for rest in LAYER},
    }
    assert {w.name: w.inputs[0] for w in found.tensors}[
        "decoder.block.2.mlp.up.weight"
    ] == "decoder.block.1.mlp.up.weight"
    assert {name: (cut.stack, cut.kept) for name, cut in found.cuts.items()} == {
        "encoder": ("encoder.block", (0,)),
        "decoder": ("decoder.block", (0, 1, 1)),
    }


def test_tensors_of_no_module_are_not_lost(models: Models) -> None:
    models.add("t5", two_stacks(), {"num_layers": 2})
    recipe: dict[str, Any] = {
        "merge_method": "passthrough",
        "modules": {name: {"models": [{"model": "t5"}]} for name in ("encoder", "decoder")},
    }
    with pytest.raises(PlanError, match="1 tensors of t5 belong to none of the recipe's modules") as caught:
        outlined(models, recipe)
    assert caught.value.tensor == "shared.weight"


def test_modules_that_are_not_there(models: Models) -> None:
    recipe: dict[str, Any] = {
        "merge_method": "passthrough",
        "modules": {name: {"models": [{"model": "a"}]} for name in ("text_decoder", "vision_tower")},
    }
    with pytest.raises(PlanError, match="a has no module 'vision_tower'"):
        outlined(models, recipe)


@pytest.mark.parametrize("step", [1, -1])
def test_the_projector_is_not_part_of_the_tower(step: int, models: Models) -> None:
    one = np.ones((2, 2), np.float32)
    vision = {"visual.patch_embed.proj.weight": one, "visual.blocks.0.attn.qkv.weight": one,
              "visual.merger.mlp.0.weight": one}  # fmt: skip
    models.add("vl", llama() | vision)
    names = ("vision_tower", "multi_modal_projector", "text_decoder")
    recipe: dict[str, Any] = {
        "merge_method": "passthrough",
        "modules": {name: {"models": [{"model": "vl"}]} for name in names[::step]},
    }
    owner = {w.name: w.module.name for w in outlined(models, recipe).tensors}
    assert [owner[name] for name in vision] == ["vision_tower", "vision_tower", "multi_modal_projector"]
    assert {owner[name] for name in llama()} == {"text_decoder"}
