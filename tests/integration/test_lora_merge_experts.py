"""Adapters of stacked experts merged into one: against PEFT in float64, and against each expert's update by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuvee
from cuvee.errors import CuveeError
from cuvee.lora_api import merge_lora
from support.checkpoints import read_checkpoint, read_file, write_tensors
from support.tuned import load, merged, weights, with_adapter

PREFIX = "base_model.model."
FAMILIES = ["gpt_oss", "qwen3_moe"]
WEIGHTS = (0.7, -0.4)
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
DOWN = "model.layers.1.mlp.experts.down_proj"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of experts, stacked on the disk as it is in memory."""
    from safetensors.torch import save_file

    from support.tuned import make_pair

    path, _ = make_pair(tmp_path_factory.mktemp(request.param), request.param)
    state = load(path).state_dict()
    save_file({name: values.contiguous() for name, values in state.items()}, path / "model.safetensors")
    return path


def trained(base: Path, folder: Path, parameters: list[str], seed: int, **config: Any) -> Path:
    """An adapter of these parameters as PEFT saves it, its numbers drawn at random."""
    import peft
    import torch

    torch.manual_seed(seed)
    facts = {"r": 3, "lora_alpha": 5, "target_modules": [], "task_type": "CAUSAL_LM", **config}
    model = peft.get_peft_model(load(base), peft.LoraConfig(target_parameters=parameters, **facts))
    for name, values in model.named_parameters():
        if "lora_" in name:
            values.data.copy_(0.3 * torch.randn(values.shape))
    model.save_pretrained(folder)
    return folder


def in_float64(base: Path, adapter: Path) -> dict[str, Any]:
    """All weights after PEFT has merged an adapter into the base, computed in float64."""
    import peft

    return merged(peft.PeftModel.from_pretrained(load(base).double(), adapter))


def merge(out: Path, adapters: list[Path], method: str = "concat", **parameters: Any) -> Path:
    entries = [{"model": str(p), "parameters": {"weight": w}} for p, w in zip(adapters, WEIGHTS, strict=True)]
    merge_lora({"merge_method": method, "models": entries, "parameters": parameters}, out)
    return out


def assert_sum(base: Path, adapters: list[Path], out: Path, tolerance: float = 1e-6) -> None:
    """The merged adapter changes the base by the weighted sum of what the adapters change, in PEFT and in Cuvee."""
    with_adapter(base, out)  # nothing is missing
    own, got = weights(load(base)), in_float64(base, out)
    each = [in_float64(base, adapter) for adapter in adapters]
    changed = 0
    for name, values in own.items():
        wanted = sum(w * (tuned[name] - values) for w, tuned in zip(WEIGHTS, each, strict=True))
        assert got[name] - values == pytest.approx(wanted, abs=tolerance * np.abs(wanted).max()), name
        changed += bool(np.abs(wanted).max() > 0)
    assert changed
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{base}+{out}"}]}
    cuvee.merge(recipe, out.with_name(f"{out.name}-read"))
    for name, values in read_checkpoint(out.with_name(f"{out.name}-read")).items():
        assert values == pytest.approx(got[name], abs=2e-6), name


def test_concatenation_is_the_sum_of_the_experts_updates(base: Path, tmp_path: Path) -> None:
    pair = [
        trained(base, tmp_path / "a", BOTH, 1, rank_pattern={"down_proj": 2}, alpha_pattern={"down_proj": 7}),
        trained(base, tmp_path / "b", BOTH, 2, r=4, use_rslora=True),
    ]
    out = merge(tmp_path / "out", pair)
    assert_sum(base, pair, out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"][DOWN], config["target_modules"]) == (7, 6, [])
    assert config["target_parameters"] == sorted(f"model.layers.{i}.{name}" for i in range(2) for name in BOTH)


def test_adapters_of_different_parameters_and_of_modules(base: Path, tmp_path: Path) -> None:
    pair = [
        trained(base, tmp_path / "a", BOTH[1:], 1, target_modules=["q_proj", "o_proj"]),
        trained(base, tmp_path / "b", ["experts.gate_up_proj", DOWN], 2, r=2),
    ]
    out = merge(tmp_path / "out", pair)
    assert_sum(base, pair, out)
    names = {name for name in read_file(out / "adapter_model.safetensors") if "experts" in name and "lora_A" in name}
    experts = f"{PREFIX}model.layers.{{}}.mlp.experts"
    assert names == {f"{experts.format(i)}{wrapped}.lora_A.weight" for i in range(2) for wrapped in ("", ".base_layer")}


@pytest.mark.parametrize(("method", "parameters"), [("svd", {"rank": 64}), ("task_arithmetic", {"space": "core"}),
                                                    ("task_arithmetic", {"space": "knots"})])  # fmt: skip
def test_sums_in_any_space(base: Path, tmp_path: Path, method: str, parameters: dict[str, Any]) -> None:
    pair = [trained(base, tmp_path / n, BOTH, i, r=r) for i, (n, r) in enumerate([("a", 3), ("b", 2)])]
    assert_sum(base, pair, merge(tmp_path / "out", pair, method, **parameters), 5e-6)


def experts_of(folder: Path, holder: str, rank: int) -> list[tuple[Any, Any]]:
    """A and B of every expert, as PEFT's formula reads them: `einsum("o r e, e r i -> e o i")`."""
    tensors = read_file(folder / "adapter_model.safetensors")
    down, up = (tensors[f"{PREFIX}{holder}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    count = down.shape[0] // rank
    return [(down.reshape(count, rank, -1)[e], up.reshape(-1, rank, count)[:, :, e]) for e in range(count)]


def test_each_expert_is_merged_as_a_module_by_itself(base: Path, tmp_path: Path) -> None:
    pair = [trained(base, tmp_path / n, BOTH[1:], i) for i, n in enumerate("ab")]
    out = merge(tmp_path / "out", pair, "ties", density=0.5)
    holder = DOWN.rpartition(".")[0]
    for number, (down, up) in enumerate(experts_of(out, holder, 6)):
        alone = []
        for folder in pair:
            a, b = experts_of(folder, holder, 3)[number]
            own = tmp_path / f"{folder.name}{number}"
            halves = {"A": a.astype(np.float32), "B": b.astype(np.float32)}
            named = {f"{PREFIX}q_proj.lora_{half}.weight": values for half, values in halves.items()}
            write_tensors(own / "adapter_model.safetensors", named)
            facts = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]}
            (own / "adapter_config.json").write_text(json.dumps(facts))
            alone.append(own)
        ((a, b),) = experts_of(merge(tmp_path / f"alone{number}", alone, "ties", density=0.5), "q_proj", 6)
        assert up @ down == pytest.approx(b @ a, abs=1e-5)


def test_a_damaged_expert_and_other_numbers_of_experts_are_named(base: Path, tmp_path: Path) -> None:
    pair = [trained(base, tmp_path / n, BOTH[1:], i) for i, n in enumerate("ab")]
    file, key = pair[1] / "adapter_model.safetensors", f"{PREFIX}{DOWN.rpartition('.')[0]}.lora_A.weight"
    tensors = read_file(file)
    more = np.concatenate([tensors[key], tensors[key][:3]])
    wider = np.pad(tensors[key.replace("lora_A", "lora_B")], ((0, 0), (0, 3)))
    write_tensors(file, tensors | {key: more, key.replace("lora_A", "lora_B"): wider})
    with pytest.raises(CuveeError, match="models of different sizes"):
        merge(tmp_path / "out", pair)
    write_tensors(file, tensors | {key: np.where(tensors[key] == tensors[key][0, 0], np.nan, tensors[key])})
    with pytest.raises(CuveeError, match="holds values that are not finite"):
        merge(tmp_path / "out", pair)
