"""The method on numbers worked out by hand, and through a whole merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from even_arithmetic import even_arithmetic, even_out
from safetensors.numpy import load_file

import cuvee
from cuvee.demo import family
from cuvee.numerics.block import Block

EXPERTS = ("reverse", "sort", "add")


def test_changes_of_length_5_and_10_are_brought_to_7_and_a_half() -> None:
    deltas = Block((np.float32([3, 4]), np.float32([0, 10])))
    result = even_arithmetic(deltas, (1.5, 0.75), weight=(1.0, 1.0))
    assert result.tolist() == [4.5, 13.5]


def test_a_merge_is_the_formula(tmp_path: Path) -> None:
    models = family()
    recipe = {
        "merge_method": "even_arithmetic",
        "base_model": str(models["base"]),
        "models": [{"model": str(models[name])} for name in EXPERTS],
        "parameters": {"weight": 0.8},
        "dtype": "float32",
    }
    cuvee.merge(recipe, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base, *experts = (load_file(models[name] / "model.safetensors") for name in ("base", *EXPERTS))
    for name, start in base.items():
        deltas = [expert[name].astype(np.float64) - start.astype(np.float64) for expert in experts]
        lengths = [np.linalg.norm(delta) for delta in deltas]
        even = [np.mean(lengths) / length * delta for length, delta in zip(lengths, deltas, strict=True)]
        np.testing.assert_allclose(merged[name], start.astype(np.float64) + 0.8 * sum(even), rtol=1e-5, atol=1e-6)


def test_lengths_are_those_of_the_whole_tensor() -> None:
    whole = Block((np.float32([3, 4, 0, 0]), np.float32([0, 0, 6, 8])))

    class Whole:
        """As much of a scan as the method asks for."""

        def gram(self) -> np.ndarray:
            return np.array([[np.dot(a, b) for b in whole] for a in whole], np.float64)

    assert even_out(Whole()) == (1.5, 0.75)
