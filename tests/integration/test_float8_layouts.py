"""Float8 as it lies on the Hub, layout by layout: what a copy holds is what the layout's own library makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cuvee

DYNAMIC = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
FIXED = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def compressed(activations: dict[str, Any], strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": group},
    }  # fmt: skip


def in_blocks(weight: Any, rows: int, columns: int) -> tuple[Any, Any]:
    """Float8 values, and the scale of each block that brings its largest value to 448."""
    import torch

    blocks = weight.float().view(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
    scales = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scales[:, None, :, None]).view(weight.shape)
    return values.to(torch.float8_e4m3fn), scales


def deepseek(weight: Any) -> dict[str, Any]:
    values, scales = in_blocks(weight, 128, 128)
    return {"weight": values, "weight_scale_inv": scales}


def deepseek_v4(weight: Any) -> dict[str, Any]:
    """Scales that are powers of two, called `scale`."""
    import torch

    _, scales = in_blocks(weight, 128, 128)
    powers = torch.exp2(torch.ceil(torch.log2(scales)))
    grid = powers.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return {"weight": (weight.float() / grid).to(torch.float8_e4m3fn), "scale": powers.to(torch.float8_e8m0fnu)}


def static(weight: Any) -> dict[str, Any]:
    import torch

    values, scales = in_blocks(weight, *weight.shape)
    return {"weight": values, "weight_scale_inv": scales.reshape(()), "activation_scale": torch.tensor(1.0)}


def by_tensor(weight: Any) -> dict[str, Any]:
    import torch

    values, scales = in_blocks(weight, *weight.shape)
    return {"weight": values, "weight_scale": scales.reshape(1).bfloat16(), "input_scale": torch.ones(1).bfloat16()}


def by_row(weight: Any) -> dict[str, Any]:
    values, scales = in_blocks(weight, 1, weight.shape[1])
    return {"weight": values, "weight_scale": scales.bfloat16()}


def by_block(weight: Any) -> dict[str, Any]:
    values, scales = in_blocks(weight, 128, 128)
    return {"weight": values, "weight_scale": scales.bfloat16()}


CASES: dict[str, tuple[Callable[[Any], dict[str, Any]], dict[str, Any], int]] = {
    "deepseek": (deepseek, DYNAMIC, 0),
    "deepseek-v4": (deepseek_v4, {**DYNAMIC, "scale_fmt": "ue8m0"}, 0),
    "static": (static, {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}, 7),
    "tensor": (by_tensor, compressed(FIXED, "tensor"), 7),
    "channel": (by_row, compressed(TOKENS, "channel"), 0),
    "block": (by_block, compressed(TOKENS, "block", block_structure=[128, 128]), 0),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("float8") / "plain"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=384, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("case", CASES)
def test_a_copy_is_what_the_layout_s_library_reads(case: str, plain: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, LlamaForCausalLM

    layout, quantisation, dropped = CASES[case]
    if quantisation["quant_method"] == "compressed-tensors":
        pytest.importorskip("compressed_tensors", reason="compressed-tensors, which is the oracle, is not installed")
        settings: Any = CompressedTensorsConfig(run_compressed=False)
    else:
        settings = FineGrainedFP8Config(dequantize=True)
    folder = tmp_path / case
    shutil.copytree(plain, folder)
    state = load_file(plain / "model.safetensors")
    stored = {name: tensor for name, tensor in state.items() if "_proj" not in name}
    for name in state.keys() - stored.keys():
        stored |= {name.removesuffix("weight") + end: value for end, value in layout(state[name]).items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))

    recipe = {"merge_method": "passthrough", "models": [{"model": str(folder)}], "dtype": "float32"}
    assert (
        cuvee.plan(recipe)
        .notes[0]
        .endswith(
            "7 float8 weights are read as bfloat16, multiplied by their scales"
            + (f"; {dropped} scales of activations are left out" if dropped else "")
        )
    )
    cuvee.merge(recipe, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    reference = LlamaForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
    wanted = {name: tensor for name, tensor in reference.state_dict().items() if "scale" not in name}
    assert got.keys() == wanted.keys() == state.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name].to(torch.bfloat16), tensor), name
