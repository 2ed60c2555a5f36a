"""Stages in recipes: a line over the layers reaches from the embeddings to the head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import cuvee
from support.tiny_models import Family, assert_rounded_once, load_checkpoint, recipe

TASK = """
merge_method: task_arithmetic
base_model: "@base"
models:
  - {model: "@a", parameters: {weight: 0.5}}
parameters: {lines: [0.2, 1.0]}
"""


def test_lines_go_by_depth(llama: Family, tmp_path: Path) -> None:
    cuvee.merge(recipe(TASK, llama), tmp_path / "out")
    base, a = llama.exact("base"), llama.exact("a")

    def factor(name: str) -> float:
        if "layers." in name:
            return (0.2, 0.6, 1.0)[int(name.split(".")[2])]  # three layers
        return 0.2 if "embed" in name else 1.0  # the final norm and the head come after them

    assert {factor(name) for name in base if "layers." not in name} == {0.2, 1.0}
    expected = {name: base[name] + 0.5 * factor(name) * (a[name] - base[name]) for name in base}
    assert_rounded_once(load_checkpoint(tmp_path / "out"), expected, llama.dtype)


def test_norms_are_matched_tensor_by_tensor(llama: Family, tmp_path: Path) -> None:
    text = """
    merge_method: ties
    base_model: "@base"
    models:
      - {model: "@a", parameters: {weight: 1.0}}
      - {model: "@b", parameters: {weight: 3.0}}
    parameters: {density: 0.2, match_norm: true}
    """
    cuvee.merge(recipe(text, llama), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    base, a, b = (llama.exact(name) for name in ("base", "a", "b"))
    for name, start in base.items():
        goal = (np.linalg.norm(a[name] - start) + 3 * np.linalg.norm(b[name] - start)) / 4
        np.testing.assert_allclose(np.linalg.norm(merged[name].astype(np.float64) - start), goal, rtol=1e-4)
