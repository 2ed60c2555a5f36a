from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import CheckpointError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.dequantised import Dequantised
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.views.dequantised import dequantised
from support.checkpoints import DTYPES, Array, write_checkpoint

FP8 = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}}
E4M3 = DTYPES["F8_E4M3"]
ONES = np.ones((4, 6), E4M3)


def opened(folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Checkpoint:
    return open_checkpoint(Directory(write_checkpoint(folder, tensors, config)), "m")


def values(checkpoint: Checkpoint, name: str) -> list[float]:
    source = checkpoint.tensors[name]
    with FileReader() as reader:
        read = source.read(0, int(np.prod(source.shape)), reader, np.dtype(np.float64))
    return [float(value) for value in read]


def test_blocks_as_deepseek_stores_them(tmp_path: Path) -> None:
    weight = (np.arange(300 * 200).reshape(300, 200) % 13 - 6).astype(E4M3)
    scales = np.array([[0.5, 2.0], [3.0, 0.25], [7.0, 1.5]], np.float32)
    stored = {"model.layers.0.mlp.up_proj.weight": weight, "model.layers.0.mlp.up_proj.weight_scale_inv": scales,
              "model.norm.weight": np.ones(3, DTYPES["BF16"])}  # fmt: skip
    seen = dequantised(opened(tmp_path / "m", stored, FP8))
    assert sorted(seen.tensors) == ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    wanted = weight.astype(float) * np.repeat(np.repeat(scales, 128, 0), 128, 1)[:300, :200]
    assert values(seen, "model.layers.0.mlp.up_proj.weight") == wanted.ravel().tolist()
    assert seen.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert seen.notes == ("m: 1 float8 weights are read as bfloat16, multiplied by their scales",)


@pytest.mark.parametrize(
    ("method", "shape"),
    [("compressed-tensors", (4, 1)), ("compressed-tensors", (1,)), ("fbgemm_fp8", (4, 1)), ("modelopt", ()), ("", ())],
)
def test_scales_of_tensors_and_rows(method: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    scales = np.arange(2, 2 + np.prod(shape, dtype=int)).reshape(shape).astype(DTYPES["BF16"])
    stored = {"a.weight": ONES, "a.weight_scale": scales, "a.input_scale": np.ones((), np.float32)}
    seen = dequantised(
        opened(tmp_path / "m", stored, {"quantization_config": {"quant_method": method}} if method else {})
    )
    assert list(seen.tensors) == ["a.weight"]
    wanted = np.ones((4, 6)) * (scales.astype(float) if len(shape) == 2 else float(scales.reshape(-1)[0]))
    assert values(seen, "a.weight") == wanted.ravel().tolist()
    assert seen.notes[0].endswith("; 1 scales of activations are left out")


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    stored = {"a.weight": ONES, "a.weight_scale_inv": np.array([[0.25], [1.0], [2.0], [8.0]]).astype(DTYPES["F8_E8M0"])}
    seen = dequantised(opened(tmp_path / "m", stored, FP8))
    assert values(seen, "a.weight") == [0.25] * 6 + [1.0] * 6 + [2.0] * 6 + [8.0] * 6


@pytest.mark.parametrize("end", [".scale", ".qscale_weight"])
def test_scales_beside_the_weight(end: str, tmp_path: Path) -> None:
    """As DeepSeek-V4 and Mistral name them; norms of a name like that are no weights in float8, and stay."""
    stored = {"a.weight": ONES, f"a{end}": np.full((), 3, np.float32), "a.qscale_act": np.ones((), np.float32),
              "clip.scale": np.ones(2, np.float32)}  # fmt: skip
    seen = dequantised(opened(tmp_path / "m", stored, FP8))
    assert sorted(seen.tensors) == ["a.weight", "clip.scale"]
    assert values(seen, "a.weight") == [3.0] * 24


def test_powers_of_two_written_as_bytes(tmp_path: Path) -> None:
    config = {"quantization_config": {**FP8["quantization_config"], "scale_fmt": "ue8m0"}}
    stored = {"a.weight": ONES, "a.weight_scale_inv": np.array([[125], [127], [128], [130]], np.uint8)}
    seen = dequantised(opened(tmp_path / "m", stored, config))
    assert values(seen, "a.weight") == [0.25] * 6 + [1.0] * 6 + [2.0] * 6 + [8.0] * 6


def test_four_bits_beside_float8_are_refused(tmp_path: Path) -> None:
    """DeepSeek-V4 packs its experts: as integers they would be copied, and nothing would say what they are."""
    stored = {"a.weight": ONES, "a.scale": np.ones((), np.float32), "e.weight": np.ones((4, 3), np.int8),
              "e.scale": np.ones((4, 1), np.float32).astype(DTYPES["F8_E8M0"])}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"'e\.weight' of m is packed"):
        dequantised(opened(tmp_path / "m", stored, FP8))


def test_stacked_experts(tmp_path: Path) -> None:
    scales = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1)
    stored = {"e.gate_up_proj": np.ones((2, 256, 3), E4M3), "e.gate_up_proj_scale_inv": scales,
              "e.gate_up_proj_activation_scale": np.ones(2, np.float32)}  # fmt: skip
    seen = dequantised(opened(tmp_path / "m", stored, FP8))
    assert list(seen.tensors) == ["e.gate_up_proj"]
    read = np.array(values(seen, "e.gate_up_proj")).reshape(2, 256, 3)
    assert [float(read[e, r, 0]) for e in (0, 1) for r in (0, 127, 128, 255)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_stated_block_counts(tmp_path: Path) -> None:
    structure = {"group_0": {"weights": {"strategy": "block", "block_structure": [3, 4]}}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": structure}}
    scales = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    seen = dequantised(opened(tmp_path / "m", {"a.weight": ONES, "a.weight_scale": scales}, config))
    source = seen.tensors["a.weight"]
    assert isinstance(source, Dequantised)
    assert source.block == (3, 4)
    assert values(seen, "a.weight") == [1, 1, 1, 1, 2, 2] * 3 + [3, 3, 3, 3, 4, 4]


def test_plain_checkpoints_are_left_alone(tmp_path: Path) -> None:
    plain = opened(tmp_path / "plain", {"a.weight": np.ones((2, 2), np.float32)}, {})
    assert dequantised(plain) is plain
    stale = opened(tmp_path / "stale", {"a.weight": np.ones((2, 2), np.float32)}, FP8)
    assert dequantised(stale) is stale


INTS = np.ones((2, 2), np.int32)
REFUSED = {
    "gptq": ({"a.qweight": INTS, "a.g_idx": INTS}, "GPTQ", "quantised from"),
    "awq": ({"a.qweight": INTS, "a.qzeros": INTS}, "AWQ", "quantised from"),
    "bitsandbytes": ({"a.weight": np.ones((4, 1), np.uint8), "a.weight.quant_map": np.ones(16, np.float32)},
                     "bitsandbytes", "dequantize"),
    "mxfp4": ({"a.gate_up_proj_blocks": np.ones((2, 2), np.uint8), "a.gate_up_proj_scales": np.ones(2, np.uint8)},
              "MXFP4", "Mxfp4Config"),
    "compressed-tensors": ({"a.weight_packed": INTS, "a.weight_scale": np.ones(2, np.float32)}, "packed", "from"),
}  # fmt: skip


@pytest.mark.parametrize("method", REFUSED)
@pytest.mark.parametrize("told_by", ["config", "names"])
def test_other_formats_are_named_and_refused(method: str, told_by: str, tmp_path: Path) -> None:
    tensors, name, fix = REFUSED[method]
    config = {"quantization_config": {"quant_method": method}} if told_by == "config" else {}
    with pytest.raises(CheckpointError, match="m is quantised") as caught:
        dequantised(opened(tmp_path / "m", tensors, config))
    assert name in caught.value.what
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"bits": 4}},
        {"quantization_config": {"quant_method": "torchao"}},
        {"quantization_config": {"quant_method": "of-next-year"}},
        {"text_config": {"quantization_config": {"quant_method": "hqq"}}},
        {"compression_config": {"quant_method": "of-next-year"}},
    ],
)
def test_what_only_the_config_tells(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="m is quantised"):
        dequantised(opened(tmp_path / "m", {"a.weight": np.ones((2, 2), np.float32)}, config))


def test_eight_bit_integers_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": np.ones((2, 2), np.int8), "a.weight_scale": np.ones((2, 1), np.float32)}
    with pytest.raises(CheckpointError, match="m is quantised"):
        dequantised(opened(tmp_path / "m", tensors, {"quantization_config": {"quant_method": "compressed-tensors"}}))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({}, "has no scales"),
        ({"a.weight_scale": np.ones((3, 1), np.float32)}, "do not fit"),
        ({"a.weight_scale": np.ones((4, 1), np.uint8)}, "not known here"),
        ({"a.weight_scale": np.ones(1, np.float32), "a.weight_zero_point": np.ones(1, np.float32)}, "not known here"),
    ],
)
def test_float8_that_cannot_be_read_is_refused(more: dict[str, Array], what: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        dequantised(opened(tmp_path / "m", {"a.weight": ONES, **more}, {}))
    assert caught.value.tensor == "a.weight"
    assert caught.value.fix
