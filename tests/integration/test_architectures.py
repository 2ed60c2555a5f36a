"""Merges of real architectures, compared with float64 arithmetic on their state dicts and loaded in transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuvee
from support.tiny_models import (
    ARCHITECTURES,
    LAYERS,
    Family,
    Maker,
    State,
    assert_rounded_once,
    layer_key,
    load_checkpoint,
    recipe,
)

SHARES = (0.5, 0.3, 0.9)
# Powers of two: votes on bfloat16's grid cancel exactly, where 0.3 would leave the elected sign to rounding.
VOTES = (0.5, 0.25, 1.0)
STACKS = {"gpt2": "transformer.h", "gpt-neox": "gpt_neox.layers"}
LINEAR = """
merge_method: linear
models:
  - {model: "@a", parameters: {weight: 0.5}}
  - {model: "@b", parameters: {weight: 0.3}}
  - {model: "@c", parameters: {weight: 0.9}}
"""
SLERP = """
merge_method: slerp
base_model: "@base"
models: [{model: "@base"}, {model: "@a"}]
parameters: {t: 0.35}
"""
TIES = """
merge_method: ties
base_model: "@base"
models:
  - {model: "@a", parameters: {weight: 0.5}}
  - {model: "@b", parameters: {weight: 0.25}}
  - {model: "@c", parameters: {weight: 1.0}}
parameters: {density: 0.4}
"""
STACK = """
merge_method: passthrough
slices:
  - sources: [{model: "@a", layer_range: [0, 2]}]
  - sources: [{model: "@b", layer_range: [1, 3]}]
  - sources: [{model: "@c", layer_range: [2, 3]}]
"""
SLICED = """
merge_method: linear
slices:
  - sources:
      - {model: "@a", layer_range: [0, 2], parameters: {weight: 1.0}}
      - {model: "@b", layer_range: [1, 3], parameters: {weight: 3.0}}
  - sources:
      - {model: "@c", layer_range: [2, 3], parameters: {weight: 0.5}}
      - {model: "@a", layer_range: [0, 1], parameters: {weight: 0.5}}
"""

Arrays = Sequence[np.ndarray[Any, Any]]


def linear(tensors: Arrays) -> np.ndarray[Any, Any]:
    return sum((share / sum(SHARES) * tensor for share, tensor in zip(SHARES, tensors, strict=True)), np.zeros(()))


def slerp(v0: np.ndarray[Any, Any], v1: np.ndarray[Any, Any], t: float) -> np.ndarray[Any, Any]:
    """Shoemake's formula on flattened tensors; straight where they are all but parallel."""
    u0, u1 = (v / (np.linalg.norm(v) or 1.0) for v in (v0, v1))
    cosine = float(np.vdot(u0, u1))
    if abs(cosine) > 0.9995:
        return np.asarray((1 - t) * v0 + t * v1)
    angle = math.acos(cosine)
    s0, s1 = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return np.asarray(s0 * v0 + s1 * v1)


def ties(base: np.ndarray[Any, Any], tensors: Arrays, density: float) -> np.ndarray[Any, Any]:
    """Yadav et al. 2023, step by step: trim, elect, merge."""
    votes = []
    for weight, tensor in zip(VOTES, tensors, strict=True):
        delta = (tensor - base).ravel()
        kept = np.argsort(-abs(delta), kind="stable")[: max(1, int(density * delta.size))]
        mask = np.zeros(delta.size)
        mask[kept] = 1.0
        votes.append(weight * delta * mask)
    sign = np.where(sum(votes) >= 0, 1.0, -1.0)
    numerator, denominator = np.zeros(base.size), np.zeros(base.size)
    for weight, vote in zip(VOTES, votes, strict=True):
        agrees = np.sign(vote) == sign
        numerator += vote * agrees
        denominator += weight * agrees
    return np.asarray(base + (numerator / np.where(denominator == 0, 1.0, denominator)).reshape(base.shape))


def exact_linear(family: Family) -> State:
    states = [family.exact(name) for name in "abc"]
    return {key: linear([state[key] for state in states]) for key in states[0]}


def exact_slerp(family: Family) -> State:
    base, other = family.exact("base"), family.exact("a")
    return {key: slerp(base[key], other[key], 0.35) for key in base}


def exact_ties(family: Family) -> State:
    base, states = family.exact("base"), [family.exact(name) for name in "abc"]
    return {key: ties(base[key], [state[key] for state in states], 0.4) for key in base}


def merge(text: str, family: Family, out: Path) -> State:
    report = cuvee.merge(recipe(text, family), out)
    assert report.dropped == () or "slices" in text
    return load_checkpoint(out)


def load(out: Path) -> Any:
    """The model as transformers loads it: nothing missing, nothing left over; and it generates."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype="auto")
    assert {key: list(value) for key, value in info.items() if value} == {}
    tokens = model.generate(
        torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert tokens.shape == (1, 7)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("text", "exact"),
    [(LINEAR, exact_linear), (SLERP, exact_slerp), (TIES, exact_ties)],
    ids=["linear", "slerp", "ties"],
)
def test_merge_equals_float64(
    name: str, text: str, exact: Callable[[Family], State], architecture: Maker, tmp_path: Path
) -> None:
    family = architecture(name)
    got = merge(text, family, tmp_path / "out")
    assert_rounded_once(got, exact(family), family.dtype)
    model = load(tmp_path / "out")
    assert str(model.dtype) == f"torch.{family.dtype.name}"
    assert model.config.num_hidden_layers == LAYERS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stack_of_layers(name: str, architecture: Maker, tmp_path: Path) -> None:
    family = architecture(name)
    got = merge(STACK, family, tmp_path / "out")
    stack = STACKS.get(name, "model.layers")
    picked = [("a", 0), ("a", 1), ("b", 1), ("b", 2), ("c", 2)]
    states = {key: family.state(key) for key in "abc"}
    expected = {
        f"{stack}.{number}.{key.removeprefix(f'{stack}.{layer}.')}": tensor
        for number, (model, layer) in enumerate(picked)
        for key, tensor in states[model].items()
        if key.startswith(f"{stack}.{layer}.")
    }
    for key in states["a"]:  # embeddings are the first slice's, norm and head the last's
        if not key.startswith(stack):
            first = any(part in key for part in ("embed_tokens", "wte", "wpe", "embed_in"))
            expected[key] = states["a" if first else "c"][key]
    assert got.keys() == expected.keys()
    assert {key for key in got if got[key].tobytes() != expected[key].tobytes()} == set()
    model = load(tmp_path / "out")
    assert model.config.num_hidden_layers == len(picked)
    changed = {**family.config(), layer_key(name): len(picked)}
    if "layer_types" in changed:
        changed["layer_types"] = ["full_attention"] * len(picked)
    assert Family(name, tmp_path, family.dtype).config("out") == changed


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slices_that_merge(name: str, architecture: Maker, tmp_path: Path) -> None:
    family = architecture(name)
    got = merge(SLICED, family, tmp_path / "out")
    stack = STACKS.get(name, "model.layers")
    a, b, c = (family.exact(key) for key in "abc")
    expected: State = {}
    for key in a:
        if key.startswith(f"{stack}.0."):
            rest = key.removeprefix(f"{stack}.0.")
            for layer in (0, 1):
                expected[f"{stack}.{layer}.{rest}"] = (
                    0.25 * a[f"{stack}.{layer}.{rest}"] + 0.75 * b[f"{stack}.{layer + 1}.{rest}"]
                )
            expected[f"{stack}.2.{rest}"] = (a[key] + c[f"{stack}.2.{rest}"]) / 2
        elif not key.startswith(stack):
            first = any(part in key for part in ("embed_tokens", "wte", "wpe", "embed_in"))
            expected[key] = 0.25 * a[key] + 0.75 * b[key] if first else 0.5 * c[key] + 0.5 * a[key]
    assert_rounded_once(got, expected, family.dtype)
    assert load(tmp_path / "out").config.num_hidden_layers == LAYERS


def test_tied_head_stays_absent(architecture: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    got = merge(LINEAR, architecture("llama-tied"), out)
    assert "lm_head.weight" not in got
    model = load(out)
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_another_dtype_is_written_and_said(architecture: Maker, tmp_path: Path) -> None:
    import ml_dtypes

    family = architecture("phi")
    got = merge(LINEAR + "out_dtype: bfloat16\n", family, tmp_path / "out")
    assert_rounded_once(got, exact_linear(family), np.dtype(ml_dtypes.bfloat16))
    assert str(load(tmp_path / "out").dtype) == "torch.bfloat16"
