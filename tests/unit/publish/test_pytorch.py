from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cuvee.errors import CheckpointError, OutputError
from cuvee.publish.pytorch import require_torch, to_pytorch


def sample() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes and shapes; odd bytes come first so that later ones are not aligned."""
    ramp = torch.arange(12).reshape(3, 4)
    kinds = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return {f"t.{kind}": (ramp % 3).to(kind) for kind in kinds} | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "flags": torch.tensor([True, False, True]),
        "f8": torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn),
    }


def load(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.float(), other.float()))


def test_one_file_becomes_one_file(tmp_path: Path) -> None:
    tensors = sample()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    to_pytorch(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pytorch_model.bin", "config.json"}
    found = load(tmp_path / "pytorch_model.bin")
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensors[name]) for name in tensors)


def test_shards_become_shards_with_an_index(tmp_path: Path) -> None:
    parts = [{"b": torch.ones(4, dtype=torch.bfloat16), "a": torch.zeros(2)}, {"c": torch.full((3, 2), 7.0)}]
    for number, part in enumerate(parts, 1):
        save_file(part, tmp_path / f"model-{number:05d}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    to_pytorch(tmp_path)
    first, second = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    assert {path.name for path in tmp_path.iterdir()} == {first, second, "pytorch_model.bin.index.json"}
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 4 * 2 + 2 * 4 + 6 * 4},
        "weight_map": {"a": first, "b": first, "c": second},
    }
    assert torch.equal(load(tmp_path / first)["b"], parts[0]["b"])
    assert torch.equal(load(tmp_path / second)["c"], parts[1]["c"])


def test_a_saved_view_does_not_drag_the_whole_file_along(tmp_path: Path) -> None:
    save_file(
        {f"t{number}": torch.full((50_000,), float(number)) for number in range(10)}, tmp_path / "model.safetensors"
    )
    size = (tmp_path / "model.safetensors").stat().st_size
    to_pytorch(tmp_path)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 1.01 * size


def test_transformers_loads_the_shards(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **shape))
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    to_pytorch(tmp_path)
    assert not list(tmp_path.glob("*.safetensors*"))
    again, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_without_torch_the_hint_is_given_and_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OutputError, match="needs torch") as caught:
        to_pytorch(tmp_path)
    assert "pip install" in (caught.value.fix or "")
    with pytest.raises(OutputError, match="needs torch"):
        require_torch()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no safetensors file"):
        to_pytorch(tmp_path)


def test_a_corrupt_shard_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        to_pytorch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*pytorch_model\.bin"):
        to_pytorch(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
