"""Classes that transformers 5 stores otherwise than 4 did: matched in both directions, value by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.views.names import matched
from support.checkpoints import Array
from support.corpus import tiny

QUICK = (
    "DeepseekV3ForCausalLM", "Gemma3ForConditionalGeneration", "JambaForCausalLM", "Qwen2VLForConditionalGeneration",
    "ViTForImageClassification",
)  # fmt: skip
OTHERS = (
    "AfmoeForCausalLM", "AltCLIPModel", "AudioFlamingo3ForConditionalGeneration",
    "AyaVisionForConditionalGeneration", "BeitForImageClassification", "Cohere2MoeForCausalLM",
    "DeepseekV2ForCausalLM", "DeepseekV32ForCausalLM", "DeiTForImageClassification", "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification", "Ernie4_5_MoeForCausalLM", "ExaoneMoeForCausalLM",
    "FlexOlmoForCausalLM", "FlintForCausalLM", "FuyuForCausalLM", "GPTNeoXForCausalLM", "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM", "Glm4vMoeForConditionalGeneration", "GlmAsrForConditionalGeneration",
    "GlmMoeDsaForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM",
    "GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration", "HYV3ForCausalLM",
    "IJepaForImageClassification", "InternVLForConditionalGeneration", "LagunaForCausalLM",
    "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration", "MellumForCausalLM", "MiMoV2FlashForCausalLM", "MiniMaxForCausalLM",
    "MiniMaxM2ForCausalLM", "Mistral3ForConditionalGeneration", "MixtralForCausalLM",
    "MllamaForConditionalGeneration", "MusicFlamingoForConditionalGeneration", "NemotronHForCausalLM",
    "OlmoeForCausalLM", "PaliGemmaForConditionalGeneration", "PhimoeForCausalLM",
    "Qwen2AudioForConditionalGeneration", "Qwen2MoeForCausalLM", "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM",
    "ShieldGemma2ForImageClassification", "SolarOpenForCausalLM", "T5Gemma2ForConditionalGeneration",
    "ViTMSNForImageClassification", "ViTModel", "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration", "VisionEncoderDecoderModel", "VoxtralForConditionalGeneration",
    "VoxtralRealtimeForConditionalGeneration",
)  # fmt: skip


def values(checkpoint: Checkpoint) -> dict[str, Array]:
    with FileReader() as reader:
        return {
            name: source.read(0, int(np.prod(source.shape)), reader, np.dtype(np.float32)).reshape(source.shape)
            for name, source in checkpoint.tensors.items()
        }


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_both_directions(name: str, tmp_path: Path) -> None:
    model: Any = tiny(name)
    stored = {}
    for layout, original in (("four", True), ("five", False)):
        model.save_pretrained(tmp_path / layout, save_original_format=original)
        stored[layout] = open_checkpoint(Directory(tmp_path / layout), layout)
    four, five = stored["four"], stored["five"]
    assert set(four.tensors) != set(five.tensors), "transformers stores both alike: nothing to match"
    for theirs, base in ((four, five), (five, four)):
        found, wanted = values(matched(theirs, base)), values(base)
        assert found.keys() == wanted.keys()
        for tensor, value in wanted.items():
            np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)
