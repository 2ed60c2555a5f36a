"""adapter_config.json: the endings that find modules, ranks as patterns, tasks."""

from __future__ import annotations

import json
from typing import Any

from cuvee.lora.peft_config import AdapterPlan, adapter_config, factor_names

MODULES = [f"model.layers.{layer}.{name}" for layer in range(12) for name in ("attn.q_proj", "mlp.up", "norm")]


def config(ranks: dict[str, int], whole: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    plan = AdapterPlan(ranks=ranks, whole=whole, modules=[*MODULES, "model.norm", "lm_head"], base="org/base", **more)
    found: dict[str, Any] = json.loads(adapter_config(plan))
    return found


def every(name: str, rank: int = 4) -> dict[str, int]:
    return {module: rank for module in MODULES if module.endswith(name)}


def test_a_kind_of_module_is_named_by_its_last_part() -> None:
    assert config(every("q_proj") | every("up"))["target_modules"] == ["q_proj", "up"]


def test_single_layers_are_told_apart() -> None:
    # "1.mlp.up" must not find layer 11: PEFT compares whole parts for targets.
    assert config({"model.layers.1.mlp.up": 4})["target_modules"] == ["1.mlp.up"]


def test_whole_modules_are_compared_by_characters() -> None:
    # For these PEFT takes any ending, so that "1.norm" would find layer 11 too, and "norm" every layer's.
    found = config({}, whole=("model.layers.1.norm", "model.norm"))["modules_to_save"]
    assert found == ["layers.1.norm", "model.norm"]
    assert config({}, whole=("model.norm", *(m for m in MODULES if m.endswith("norm"))))["modules_to_save"] == ["norm"]


def test_the_commonest_rank_is_r_and_others_are_patterns() -> None:
    ranks = every("q_proj") | {"model.layers.3.attn.q_proj": 9}
    found = config(ranks)
    assert (found["r"], found["lora_alpha"]) == (4, 4)
    assert found["rank_pattern"] == found["alpha_pattern"] == {"model.layers.3.attn.q_proj": 9}


def test_facts() -> None:
    found = config(every("up"), architectures=["GPT2LMHeadModel"], biases=True, fan_in_fan_out=True, tied=True)
    assert found["task_type"] == "CAUSAL_LM"
    assert found["bias"] == "all"
    assert found["fan_in_fan_out"] is True
    assert found["ensure_weight_tying"] is True
    assert config(every("up"))["task_type"] is None
    assert "ensure_weight_tying" not in config(every("up"))
    assert config(every("up"))["modules_to_save"] is None


def test_factor_names() -> None:
    assert factor_names("m.wte", embedding=True) == (
        "base_model.model.m.wte.lora_embedding_A",
        "base_model.model.m.wte.lora_embedding_B",
    )
    assert factor_names("m.q", embedding=False)[1] == "base_model.model.m.q.lora_B.weight"
