"""Cautions about extracted adapters."""

from __future__ import annotations

from cuvee.lora.cautions import half_experts


def test_experts_of_which_one_half_is_held_are_told() -> None:
    both = [f"model.layers.0.mlp.experts.0.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    assert half_experts([*both, "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.experts.1.down_proj"]) == ()
    (said,) = half_experts([*both, "m.experts.1.w1", "m.experts.2.w1", "m.experts.3.w3", "m.experts.3.w1"])
    assert said.startswith("of m.experts.1 only w1 has factors (2 experts alike)")
