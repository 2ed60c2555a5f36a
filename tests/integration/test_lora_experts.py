"""Stacked experts extracted as factors of each, loaded by PEFT through `target_parameters`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuvee
from cuvee.errors import PlanError
from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora
from support.checkpoints import read_checkpoint, read_file
from support.tuned import everything, load, logits, make_pair, merged, relative_error, weights, with_adapter

PREFIX = "base_model.model."
FAMILIES = ["gpt_oss", "qwen3_moe"]


def no_bias(name: str, values: Any, generator: Any) -> Any:
    return None if "bias" in name or "sinks" in name else everything(name, values, generator)


def pair_of(folder: Path, family: str, change: Any = no_bias) -> tuple[Path, Path]:
    """A base and its fine-tune, experts stacked on the disk as they are in memory."""
    from safetensors.torch import save_file

    pair = make_pair(folder, family, change)
    for path in pair:
        state = load(path).state_dict()
        save_file({name: values.contiguous() for name, values in state.items()}, path / "model.safetensors")
    return pair


def extracted(folder: Path, pair: tuple[Path, Path], **options: Any) -> tuple[Path, Any]:
    base, tuned = pair
    report = extract_lora(str(tuned), str(base), folder / "adapter", ExtractOptions(**options))
    return folder / "adapter", report.extracted


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_rank_the_adapter_is_the_fine_tune(family: str, tmp_path: Path) -> None:
    pair = pair_of(tmp_path, family)
    adapter, found = extracted(tmp_path, pair, max_rank=64, exact=True)
    assert found.error < 1e-6
    assert all(each.rank for each in found.held if "experts" in each.name)
    assert set(json.loads((adapter / "adapter_config.json").read_text())["target_parameters"]) == {
        f"model.layers.{layer}.mlp.experts.{name}" for layer in range(2) for name in ("gate_up_proj", "down_proj")
    }
    got, wanted = with_adapter(pair[0], adapter), load(pair[1])
    assert logits(got) == pytest.approx(logits(wanted), abs=4e-6)
    assert relative_error(weights(load(pair[0])), weights(wanted), merged(got)) < 1e-6
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": f"{pair[0]}+{adapter}"}]}, tmp_path / "read")
    read, tuned = read_checkpoint(tmp_path / "read"), read_checkpoint(pair[1])
    for name, values in tuned.items():
        assert read[name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_at_low_rank_each_expert_is_cut_at_its_best_and_errs_as_reported(family: str, tmp_path: Path) -> None:
    pair = pair_of(tmp_path, family)
    adapter, found = extracted(tmp_path, pair, max_rank=3, exact=True)
    got = merged(with_adapter(pair[0], adapter))
    assert relative_error(weights(load(pair[0])), weights(load(pair[1])), got) == pytest.approx(found.error, rel=1e-4)
    base, tuned = (read_file(path / "model.safetensors") for path in pair)
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.1.mlp.experts.{name}"
        change = tuned[key].astype(np.float64) - base[key]
        spectra = np.linalg.svd(change, compute_uv=False)
        missing = float(np.square(spectra[:, 3:]).sum())
        (held,) = [each for each in found.held if each.name == key]
        assert (held.rank, held.cost) == (3, change.shape[0] * sum(change.shape[1:]))
        assert held.missing == pytest.approx(missing, rel=1e-4)
        assert held.values == pytest.approx(np.sqrt(np.square(spectra[:, :3]).sum(0)), rel=1e-4)


def test_one_stack_of_a_module_and_ranks_by_energy(tmp_path: Path) -> None:
    def only_down(name: str, values: Any, generator: Any) -> Any:
        return everything(name, values, generator) if name.endswith("layers.1.mlp.experts.down_proj") else None

    pair = pair_of(tmp_path, "qwen3_moe", only_down)
    adapter, found = extracted(tmp_path, pair, energy=0.7)
    (held,) = found.held
    key = "model.layers.1.mlp.experts.down_proj"
    base, tuned = (read_file(path / "model.safetensors")[key].astype(np.float64) for path in pair)
    energies = np.square(np.linalg.svd(tuned - base, compute_uv=False)).sum(0)
    assert held.rank == int(np.argmax(np.cumsum(energies) >= 0.7 * energies.sum())) + 1
    assert set(read_file(adapter / "adapter_model.safetensors")) == {
        f"{PREFIX}model.layers.1.mlp.experts.lora_{half}.weight" for half in "AB"
    }
    got = merged(with_adapter(pair[0], adapter))
    assert relative_error(weights(load(pair[0])), weights(load(pair[1])), got) == pytest.approx(found.error, rel=1e-4)


def test_where_biases_changed_too_the_module_is_whole(tmp_path: Path) -> None:
    def biases(name: str, values: Any, generator: Any) -> Any:
        return None if "sinks" in name else everything(name, values, generator)

    adapter, found = extracted(tmp_path, pair_of(tmp_path, "gpt_oss", biases), max_rank=2)
    assert all(each.whole for each in found.held if "experts" in each.name)
    assert "target_parameters" not in json.loads((adapter / "adapter_config.json").read_text())


def test_size_counts_every_expert(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, "qwen3_moe")
    adapter, found = extracted(tmp_path, pair, max_bytes="60k", skip_undecomposable=True)
    held = sum(each.rank * each.cost * 4 for each in found.decomposed)
    tensors = read_file(adapter / "adapter_model.safetensors")
    assert held == sum(values.nbytes for name, values in tensors.items() if ".lora_" in name) <= 60_000
    with pytest.raises(PlanError, match="holds no factors at all"):
        extracted(tmp_path / "small", pair, max_bytes="10", skip_undecomposable=True)
