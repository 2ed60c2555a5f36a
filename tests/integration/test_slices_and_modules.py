"""Layers cut and stacked anew in every kind of model, and modules of several: the result loads as it says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import cuvee
from cuvee import MergeOptions
from cuvee.errors import PlanError
from support.corpus import reload, save_siblings, tiny
from support.tiny_models import LAYERS, load_checkpoint, make_llama, recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of its own defaults

Pieces = list[tuple[int, int]]
GROWN: Pieces = [(0, 2), (1, 2)]


def slices(model: Path, pieces: Pieces) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(model), "layer_range": list(piece)}]} for piece in pieces]


WHOLE: dict[str, Pieces] = {
    "BertForMaskedLM": GROWN,
    "DistilBertForMaskedLM": GROWN,
    "ModernBertForMaskedLM": GROWN,
    "ViTForImageClassification": GROWN,
    "GPT2LMHeadModel": GROWN,
    "GPTNeoForCausalLM": GROWN,
    "MambaForCausalLM": GROWN,
    "GptOssForCausalLM": [(0, 1), (0, 2)],
    "Gemma3ForCausalLM": [(1, 2), (0, 2)],
    "DeepseekV3ForCausalLM": GROWN,
    "GraniteMoeHybridForCausalLM": [(0, 2), (0, 1), (0, 2)],
    "Lfm2MoeForCausalLM": GROWN,
    "NemotronHForCausalLM": [(1, 4), (0, 2)],
    "Qwen3NextForCausalLM": [(2, 4), (0, 2), (3, 4)],
    "JambaForCausalLM": [(0, 2), (0, 4)],
}


@pytest.mark.parametrize("name", WHOLE)
def test_stacks_of_layers_load(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    first, _ = save_siblings(model, tmp_path)
    cuvee.merge({"merge_method": "passthrough", "slices": slices(first, WHOLE[name])}, tmp_path / "out")
    assert reload(type(model), tmp_path / "out")[1] == {}
    assert (tmp_path / "out" / "config.json").read_bytes() != (first / "config.json").read_bytes()


@pytest.mark.parametrize(("key", "first"), [("layer_idx", 0), ("layer_number", 1)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_layers_that_store_their_own_number_are_told_the_new_one(
    key: str, first: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    family = make_llama(tmp_path / "family", names=("a", "b"))
    for name in "ab":
        numbers = {f"model.layers.{i}.self_attn.{key}": np.full(shape, i + first) for i in range(LAYERS)}
        save_file(family.state(name) | numbers, family.path(name) / "model.safetensors")
    text = """
    merge_method: linear
    parameters: {weight: 0.5}
    slices:
      - sources: [{model: "@a", layer_range: [0, 2]}, {model: "@b", layer_range: [1, 3]}]
      - sources: [{model: "@a", layer_range: [0, 2]}, {model: "@b", layer_range: [0, 2]}]
    """
    report = cuvee.merge(recipe(text, family), tmp_path / "out")
    got = load_checkpoint(tmp_path / "out")
    numbers = [got[f"model.layers.{i}.self_attn.{key}"] for i in range(4)]
    assert [number.tolist() for number in numbers] == [np.full(shape, i + first).tolist() for i in range(4)]
    assert {number.dtype for number in numbers} == {np.dtype(np.int64)}
    assert not [name for _, name in report.dropped if key in name and ".2." not in name]


MODULES: dict[str, dict[str, Pieces | None]] = {
    "T5ForConditionalGeneration": {"encoder": GROWN, "decoder": [(0, 1)], "shared": None},
    "WhisperForConditionalGeneration": {"encoder": [(1, 2)], "decoder": GROWN},
    "Qwen2VLForConditionalGeneration": {"text_decoder": GROWN, "vision_tower": None, "multi_modal_projector": None},
    "Qwen2_5_VLForConditionalGeneration": {"text_decoder": GROWN, "vision_tower": None, "multi_modal_projector": None},
    "Qwen3VLForConditionalGeneration": {"text_decoder": GROWN, "vision_tower": None, "multi_modal_projector": None},
    "Gemma3ForConditionalGeneration": {"text_decoder": GROWN, "vision_tower": [(1, 2)], "multi_modal_projector": None},
    "Mistral3ForConditionalGeneration": {"text_decoder": GROWN, "vision_tower": GROWN, "multi_modal_projector": None},
    "Llama4ForConditionalGeneration": {"text_decoder": [(0, 1)], "vision_model": GROWN, "multi_modal_projector": None},
    "CLIPModel": {"text_model": GROWN, "vision_model": [(0, 1)], "default": None},
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_models_of_several_stacks(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    first, second = save_siblings(model, tmp_path)
    modules = {
        module: {"models": [{"model": str(second)}]} if pieces is None else {"slices": slices(first, pieces)}
        for module, pieces in MODULES[name].items()
    }
    cuvee.merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    assert reload(type(model), tmp_path / "out")[1] == {}
    assert (tmp_path / "out" / "config.json").read_bytes() != (first / "config.json").read_bytes()


def test_a_text_model_goes_into_the_text_tower_alone(tmp_path: Path) -> None:
    seer = tiny("Qwen2VLForConditionalGeneration")
    first, _ = save_siblings(seer, tmp_path / "vision")
    text, _ = save_siblings(tiny("Qwen2ForCausalLM"), tmp_path / "text")
    entries = [{"model": str(model), "parameters": {"weight": 0.5}} for model in (first, text)]
    wanted = {"merge_method": "linear", "models": entries, "missing": "base"}
    with pytest.raises(PlanError, match="different architectures"):
        cuvee.plan(wanted)
    report = cuvee.merge(wanted, tmp_path / "out", MergeOptions(allow_crimes=True))
    mine, theirs, got = map(load_checkpoint, (first, text, tmp_path / "out"))
    assert got.keys() == mine.keys()
    for name, value in got.items():
        if name in theirs:
            want = (mine[name].astype(np.float64) + theirs[name]) / 2
            np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-7)
        else:
            assert name.startswith("visual.")
            assert value.tobytes() == mine[name].tobytes()
    (decision,) = report.decisions
    assert set(decision.tensors) == mine.keys() - theirs.keys()
    assert reload(type(seer), tmp_path / "out")[1] == {}
    modules = {"text_decoder": {"models": entries}}
    again = {"merge_method": "linear", "modules": modules, "missing": "base"}
    cuvee.merge(again, tmp_path / "again", MergeOptions(allow_crimes=True))
    for name, value in load_checkpoint(tmp_path / "again").items():
        assert value.tobytes() == got[name].tobytes()
