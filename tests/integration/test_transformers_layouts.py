"""Classes that transformers 5 stores otherwise than 4 did: matched in both directions, value by value."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cuvee
from cuvee.errors import PlanError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.views.names import matched
from support.checkpoints import Array
from support.corpus import tiny

QUICK = (
    "DeepseekV3ForCausalLM", "Gemma3ForConditionalGeneration", "JambaForCausalLM", "NomicBertForMaskedLM",
    "OlmoHybridForCausalLM", "Qwen2VLForConditionalGeneration", "ViTForImageClassification",
)  # fmt: skip
OTHERS = (
    "AXK1ForCausalLM", "AXK2ForCausalLM", "AfmoeForCausalLM", "AltCLIPModel", "AriaForConditionalGeneration",
    "AriaTextForCausalLM", "AudioFlamingo3ForConditionalGeneration", "AyaVisionForConditionalGeneration",
    "BailingHybridForCausalLM", "BeitForImageClassification", "Cohere2MoeForCausalLM",
    "Cosmos3OmniForConditionalGeneration", "DeepseekV2ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM",
    "DeiTForImageClassification", "Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification",
    "Dots1ForCausalLM", "Ernie4_5_MoeForCausalLM", "EsmForMaskedLM", "ExaoneMoeForCausalLM", "FlexOlmoForCausalLM",
    "FlintForCausalLM", "FuyuForCausalLM", "GPTNeoXForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM",
    "Glm4vMoeForConditionalGeneration", "GlmAsrForConditionalGeneration", "GlmMoeDsaForCausalLM",
    "GraniteMoeForCausalLM", "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM",
    "GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration", "GteForMaskedLM",
    "HYV3ForCausalLM", "HYV4ForCausalLM", "HrmTextForCausalLM", "HyperCLOVAXVisionV2ForConditionalGeneration",
    "IJepaForImageClassification", "InternVLForConditionalGeneration", "JinaEmbeddingsV3ForMaskedLM",
    "Kolibri1ForCausalLM", "LagunaForCausalLM", "Lfm2MoeForCausalLM", "Lfm3VlForConditionalGeneration",
    "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration", "LongcatFlashForCausalLM", "MellumForCausalLM",
    "MiMoV2FlashForCausalLM", "MiniMaxForCausalLM", "MiniMaxM2ForCausalLM", "Mistral3ForConditionalGeneration",
    "MixtralForCausalLM", "MllamaForConditionalGeneration", "MusicFlamingoForConditionalGeneration",
    "NemotronHForCausalLM", "OlmoeForCausalLM", "PaddleOCRVLForConditionalGeneration",
    "PaliGemmaForConditionalGeneration", "PhimoeForCausalLM", "QianfanOCRForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration", "Qwen2MoeForCausalLM", "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM",
    "Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3_5MoeForCausalLM", "ShieldGemma2ForImageClassification",
    "SolarOpenForCausalLM", "T5Gemma2ForConditionalGeneration", "Tipsv2Model", "UltraVBertForMaskedLM",
    "UltrabertForMaskedLM", "ViTMSNForImageClassification", "ViTModel", "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration", "VisionEncoderDecoderModel", "VoxtralForConditionalGeneration",
    "VoxtralRealtimeForConditionalGeneration",
)  # fmt: skip
REFUSED = {
    "Kimi_K25ForConditionalGeneration": "the order inside the fused tensor is not known",
    "MistralLarge4ForConditionalGeneration": "more than one way|the order inside the fused tensor",
    "PI0ForConditionalGeneration": "more than one way",
    "Step3p7ForConditionalGeneration": "the order inside the fused tensor is not known",
}
"""Classes whose conversion changes more than names and places (rotary halves), or whose parts look alike."""


def values(checkpoint: Checkpoint) -> dict[str, Array]:
    with FileReader() as reader:
        return {
            name: source.read(0, int(np.prod(source.shape)), reader, np.dtype(np.float32)).reshape(source.shape)
            for name, source in checkpoint.tensors.items()
        }


def both_layouts(name: str, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """A model as transformers 4 stores it, and as 5 holds it."""
    model: Any = tiny(name)
    stored = []
    for layout, original in (("four", True), ("five", False)):
        model.save_pretrained(folder / layout, save_original_format=original)
        stored.append(open_checkpoint(Directory(folder / layout), layout))
    assert set(stored[0].tensors) != set(stored[1].tensors), "transformers stores both alike: nothing to match"
    return stored[0], stored[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused(name: str, tmp_path: Path) -> None:
    four, five = both_layouts(name, tmp_path)
    for theirs, base in ((four, five), (five, four)):
        with pytest.raises(PlanError, match=REFUSED[name]):
            matched(theirs, base)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_both_directions(name: str, tmp_path: Path) -> None:
    four, five = both_layouts(name, tmp_path)
    for theirs, base in ((four, five), (five, four)):
        found, wanted = values(matched(theirs, base)), values(base)
        assert found.keys() == wanted.keys()
        for tensor, value in wanted.items():
            np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)


def test_experts_turned_as_on_the_hub_merge_with_those_that_transformers_5_saves(tmp_path: Path) -> None:
    """Qwen3-VL-MoE lies on the Hub as [expert, in, out]; transformers 5 loads both and saves [expert, out, in]."""
    name = "Qwen3VLMoeForConditionalGeneration"
    model: Any = tiny(name)
    model.save_pretrained(tmp_path / "five")
    shutil.copytree(tmp_path / "five", tmp_path / "hub")
    state = load_file(tmp_path / "five" / "model.safetensors")
    experts = {key for key in state if ".experts." in key}
    assert experts
    turned = {key: np.ascontiguousarray(v.swapaxes(1, 2)) if key in experts else v for key, v in state.items()}
    save_file(turned, tmp_path / "hub" / "model.safetensors", {"format": "pt"})
    again = {key: value.numpy() for key, value in type(model).from_pretrained(tmp_path / "hub").state_dict().items()}
    for base, wanted in (("five", state), ("hub", turned)):
        other = "hub" if base == "five" else "five"
        models = [{"model": str(tmp_path / which), "parameters": {"weight": w}} for which, w in ((base, 0), (other, 1))]
        cuvee.merge({"merge_method": "linear", "models": models}, tmp_path / f"from-{base}")
        got = load_file(tmp_path / f"from-{base}" / "model.safetensors")
        assert got.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(got[key], wanted[key], err_msg=key)
    assert experts <= again.keys()
    for key in experts:
        np.testing.assert_array_equal(again[key], state[key], err_msg=key)
