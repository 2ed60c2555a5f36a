"""What is kept and what is dropped: exact counts by magnitude, fair and independent coins at random."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.cases import arguments, spec_of
from support.checkpoints import Array
from support.merging import merge_arrays

SHAPE = (300, 1000)  # three ranges of a scan


def kept(folder: Path, method: str, deltas: list[Array], density: float, seed: int = 0, **more: Any) -> list[Array]:
    """Where the merge of each delta alone, added to a base of zeros, is not the base."""
    tensors = {f"t{i}": delta for i, delta in enumerate(deltas)}
    base = {name: np.zeros_like(delta) for name, delta in tensors.items()}
    chosen = arguments(spec_of(method), 1, weight=1.0, density=density, **more)
    merged = merge_arrays(folder, method, [base, tensors], chosen, dtype="F32", has_base=True, seed=seed)
    return [merged[name] != 0 for name in tensors]


@pytest.mark.parametrize("density", [0.0, 1e-9, 0.25, 0.333333, 0.5, 0.9999999, 1.0])
def test_ties_keeps_exactly_so_many_and_the_first_of_equals(density: float, tmp_path: Path) -> None:
    delta = np.where(np.arange(math.prod(SHAPE)).reshape(SHAPE) % 3, 0.5, -0.5).astype(np.float32)
    (mask,) = kept(tmp_path, "ties", [delta], density)
    count = max(1, int(density * delta.size)) if density > 0 else 0
    assert mask.sum() == count
    assert mask.ravel()[:count].all(), "among equals the lowest index wins"


def test_ties_keeps_the_largest_of_few_distinct_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    delta = rng.choice([0.25, -0.25, 0.5, -1.0, 0.0], SHAPE, p=[0.3, 0.3, 0.1, 0.1, 0.2]).astype(np.float32)
    (mask,) = kept(tmp_path, "ties", [delta], 0.55)
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    expected = np.zeros(delta.size, bool)
    expected[order[: int(0.55 * delta.size)]] = True
    np.testing.assert_array_equal(mask.ravel(), expected)


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("rescale", [True, False, "expected"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_della_keeps_nothing_or_all_whatever_epsilon_is(
    method: str, rescale: object, density: float, tmp_path: Path
) -> None:
    """As mergekit does: 1 is the default, so a recipe without a density must run."""
    delta = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    chosen = arguments(spec_of(method), 1, weight=1.0, density=density, epsilon=0.15, rescale=rescale)
    spec_of(method).check(density=chosen["density"], epsilon=chosen["epsilon"])  # type: ignore[misc]
    given = [{"t": np.zeros_like(delta)}, {"t": delta}]
    merged = merge_arrays(tmp_path, method, given, chosen | {"lambda_": 1.0}, dtype="F32", has_base=True)
    np.testing.assert_array_equal(merged["t"], delta * density)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.37, 0.5, 0.999, 1.0])
def test_dare_keeps_its_share(method: str, density: float, tmp_path: Path) -> None:
    (mask,) = kept(tmp_path, method, [np.ones(SHAPE, np.float32)], density)
    sigma = math.sqrt(density * (1 - density) / mask.size)
    assert abs(mask.mean() - density) <= 5 * sigma


def test_masks_depend_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    ones = np.ones(SHAPE, np.float32)
    first, again, other = (
        kept(tmp_path / str(i), "dare_linear", [ones, ones], 0.5, seed=seed)[0] for i, seed in enumerate([1, 1, 2])
    )
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(first.size)


def test_masks_of_tensors_and_models_are_independent(tmp_path: Path) -> None:
    ones = np.ones(SHAPE, np.float32)
    masks = kept(tmp_path / "tensors", "dare_linear", [ones, ones], 0.5)
    # Models 1, 2 and 4 leave their sum as the trace of which of them kept an element; the names are the same as above.
    models = [{"t0": np.zeros(SHAPE, np.float32)}, *({"t0": ones * scale} for scale in (1, 2, 4))]
    chosen = arguments(spec_of("dare_linear"), 3, lively=False, weight=1.0, density=0.5, rescale=False)
    total = merge_arrays(tmp_path / "models", "dare_linear", models, chosen, dtype="F32", has_base=True, seed=0)["t0"]
    masks += [(total.astype(int) >> bit & 1).astype(bool) for bit in (1, 2)]
    # A model's mask does not depend on how many there are.
    np.testing.assert_array_equal(total.astype(int) & 1, masks[0])
    correlation = np.corrcoef([mask.ravel() for mask in masks]) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(ones.size)


def test_neighbours_are_independent(tmp_path: Path) -> None:
    (mask,) = kept(tmp_path, "dare_linear", [np.ones(SHAPE, np.float32)], 0.5)
    flat = mask.ravel().astype(float)
    for lag in (1, 2, 3, 64, 1000):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 5 / math.sqrt(flat.size), lag


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_rescaling_keeps_the_l1_norm(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    delta = rng.normal(0, 1, SHAPE).astype(np.float32)
    base, model = {"w": np.zeros(SHAPE, np.float32)}, {"w": delta}
    chosen = arguments(spec_of(method), 1, weight=1.0, density=0.3, rescale=True, normalize=False, lively=False)
    merged = merge_arrays(tmp_path, method, [base, model], chosen, dtype="F32", has_base=True)["w"].astype(np.float64)
    assert 0.25 < (merged != 0).mean() < 0.35
    np.testing.assert_allclose(np.abs(merged).sum(), np.abs(delta.astype(np.float64)).sum(), rtol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_divided_by_their_probability_survivors_make_up_for_the_dropped(method: str, tmp_path: Path) -> None:
    """Equal magnitudes among them: each then has the mean of its equals' probabilities."""
    row = np.array([0.5, -0.5, 0.5, 1.0, -2.0, 3.0, 0.0, -0.5], np.float32)
    delta = np.tile(row, (40_000, 1))
    base, model = {"w": np.zeros_like(delta)}, {"w": delta}
    chosen = arguments(spec_of(method), 1, weight=1.0, density=0.5, rescale="expected", lively=False)
    merged = merge_arrays(tmp_path, method, [base, model], chosen, dtype="F32", has_base=True)["w"].astype(np.float64)
    ranks = np.array([2.5, 2.5, 2.5, 5, 6, 7, 0, 2.5])
    chance = 0.35 + 0.3 * ranks / 7 if method == "della_linear" else np.full(8, 0.5)
    survivors = merged != 0
    np.testing.assert_allclose(merged[survivors], np.broadcast_to(row / chance, delta.shape)[survivors], rtol=1e-6)
    sigma = np.abs(row) * np.sqrt((1 - chance) / chance / len(delta))
    assert (np.abs(merged.mean(0) - row) <= 5 * sigma).all()
