"""Float8 checkpoints merged through the whole of Cuvee, against float64 arithmetic on values and scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import cuvee
from support.checkpoints import DTYPES, Array, read_checkpoint
from support.tiny_models import Family, State, assert_rounded_once, make_llama

BLOCK = 8
QUANTISATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}


def quantise(weight: Array) -> tuple[Array, Array]:
    """Float8 values and the scales of their blocks."""
    rows, columns = (-(-length // BLOCK) for length in weight.shape)
    scales = np.empty((rows, columns), np.float32)
    values = np.empty(weight.shape, DTYPES["F8_E4M3"])
    for r in range(rows):
        for c in range(columns):
            part = (slice(r * BLOCK, (r + 1) * BLOCK), slice(c * BLOCK, (c + 1) * BLOCK))
            scales[r, c] = np.abs(weight[part]).max() / 448
            values[part] = (weight[part] / scales[r, c]).astype(DTYPES["F8_E4M3"])
    return values, scales


def save_float8(family: Family, model: str) -> State:
    """Writes a model of the family again in float8; what its tensors mean, in float64."""
    stored: State = {}
    meant: State = {}
    for name, weight in family.state(model).items():
        if "_proj" in name:
            values, scales = quantise(weight.astype(np.float32))
            stored |= {name: values, f"{name}_scale_inv": scales}
            grid = np.repeat(np.repeat(scales, BLOCK, 0), BLOCK, 1)[: weight.shape[0], : weight.shape[1]]
            meant[name] = values.astype(np.float64) * grid
        else:
            stored[name] = weight
            meant[name] = weight.astype(np.float64)
    save_file(stored, family.path(model) / "model.safetensors", {"format": "pt"})
    config = family.config(model) | {"quantization_config": QUANTISATION}
    (family.path(model) / "config.json").write_text(json.dumps(config, indent=2))
    return meant


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return make_llama(tmp_path / "family", dtype=DTYPES["BF16"], hidden=20)


def merged(family: Family, recipe: dict[str, Any], **options: Any) -> dict[str, Array]:
    cuvee.merge(recipe, family.folder / "out", cuvee.MergeOptions(**options))
    return read_checkpoint(family.folder / "out")


def recipe(family: Family, *models: str, method: str = "linear", **more: Any) -> dict[str, Any]:
    entries = [{"model": str(family.path(model)), "parameters": {"weight": i + 1}} for i, model in enumerate(models)]
    return {"merge_method": method, "models": entries, **more}


def test_float8_and_plain_models_merge(family: Family) -> None:
    a, b, c = save_float8(family, "a"), save_float8(family, "b"), family.exact("c")
    result = merged(family, recipe(family, "a", "b", "c"))
    assert result.keys() == c.keys()
    exact = {name: (a[name] + 2 * b[name] + 3 * c[name]) / 6 for name in c}
    assert_rounded_once(result, exact, DTYPES["BF16"])
    config = json.loads((family.folder / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_copy_is_the_product_rounded_once(family: Family, dtype: str) -> None:
    meant = save_float8(family, "a")
    entry = {"merge_method": "passthrough", "models": [{"model": str(family.path("a"))}], "dtype": dtype}
    assert_rounded_once(merged(family, entry), meant, DTYPES["BF16" if dtype == "bfloat16" else "F32"])


def test_the_result_loads(family: Family) -> None:
    import transformers

    save_float8(family, "a")
    save_float8(family, "b")
    merged(family, recipe(family, "a", "b"))
    _, told = transformers.AutoModelForCausalLM.from_pretrained(family.folder / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


def test_processes_and_threads_give_the_same_bytes(family: Family) -> None:
    save_float8(family, "a")
    save_float8(family, "b")
    chosen = recipe(family, "a", "b", method="ties", base_model=str(family.path("base")), parameters={"density": 0.5})
    one = merged(family, chosen, threads=1)
    two = merged(family, chosen, processes=2, threads=4, overwrite=True)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_the_plan_tells(family: Family) -> None:
    save_float8(family, "a")
    plan = cuvee.plan(recipe(family, "a", "b"))
    assert [note.split(": ")[1] for note in plan.notes] == [
        "21 float8 weights are read as bfloat16, multiplied by their scales"
    ]
