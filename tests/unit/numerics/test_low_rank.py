"""Truncated decompositions against LAPACK's in float64, for every shape of spectrum and way of reading."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cuvee.numerics import low_rank
from cuvee.numerics.low_rank import balanced, singular_values, truncated_svd
from cuvee.numerics.row_blocks import RowBlocks

RNG = np.random.default_rng(2)
SHAPES = [(90, 40), (40, 90), (64, 64)]


def matrix(shape: tuple[int, int], spectrum: str) -> Any:
    noise = RNG.standard_normal(shape)
    if spectrum == "flat":
        return noise.astype(np.float32)
    u, s, vt = np.linalg.svd(noise, full_matrices=False)
    index = np.arange(s.size)
    own = {"power": (1.0 + index) ** -1.0, "rank 5": np.where(index < 5, 10.0**-index, 0.0)}
    return ((u * own[spectrum]) @ vt).astype(np.float32)


def blocks(values: Any, step: int, threads: int = 1) -> RowBlocks:
    rows = values.shape[0]
    spans = tuple((start, min(start + step, rows)) for start in range(0, rows, step))
    if threads == 1:
        return RowBlocks(values.shape, spans, lambda start, stop: values[start:stop])
    pool = ThreadPoolExecutor(threads)
    return RowBlocks(values.shape, spans, lambda start, stop: values[start:stop], pool.map)


def missing(values: Any, found: Any) -> float:
    product = (found.left.astype(np.float64) * found.values) @ found.right
    return float(np.linalg.norm(values - product) / np.linalg.norm(values))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", ["flat", "power", "rank 5"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("step", [1000, 17])
def test_error_is_that_of_the_best_approximation(shape: Any, spectrum: str, exact: bool, step: int) -> None:
    values = matrix(shape, spectrum)
    seen = blocks(values, step)
    found = truncated_svd(seen, 6, total=seen.squared_norm(), key=1, exact=exact)
    s = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    best = np.sqrt((s[6:] ** 2).sum() / (s**2).sum())
    assert missing(values, found) <= best * (1.0005 if exact else 1.01) + 1e-6
    assert found.values == pytest.approx(s[:6], rel=0.01 if not exact else 1e-4, abs=1e-6 * s[0])
    assert np.abs(found.left.T @ found.left - np.eye(6)).max() < 1e-5


def test_random_start_iterates_until_a_flat_spectrum_is_captured() -> None:
    # A single pass from a random start would lack several percent of the best there is.
    values = RNG.standard_normal((400, 300)).astype(np.float32)
    seen = RowBlocks.of(values)
    found = truncated_svd(seen, 10, total=seen.squared_norm(), key=3, exact=False)
    s = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    assert np.square(found.values).sum() > 0.995 * np.square(s[:10]).sum()


def test_threads_do_not_change_a_bit() -> None:
    values = matrix((90, 40), "power")
    alone, together = (
        truncated_svd(blocks(values, 7, threads), 6, total=1.0, key=1, exact=False) for threads in (1, 4)
    )
    for one, other in ((alone.left, together.left), (alone.values, together.values), (alone.right, together.right)):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values(shape: Any) -> None:
    values = matrix(shape, "power")
    exact = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    assert singular_values(blocks(values, 9)) == pytest.approx(exact, rel=1e-10)


def test_a_matrix_of_zeros_has_factors_of_zero() -> None:
    found = truncated_svd(RowBlocks.of(np.zeros((8, 6), np.float32)), 3, total=0.0, key=1, exact=False)
    down, up = balanced(found, distribute=True)
    assert not down.any()
    assert not up.any()


@pytest.mark.parametrize("distribute", [True, False])
def test_balanced_factors_multiply_to_the_decomposition(distribute: bool) -> None:
    values = matrix((30, 20), "power")
    seen = RowBlocks.of(values)
    found = truncated_svd(seen, 20, total=seen.squared_norm(), key=1, exact=True)
    down, up = balanced(found, distribute=distribute)
    assert up @ down == pytest.approx(values, abs=1e-5)
    sizes = [np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)]
    roots = np.sqrt(found.values)
    assert sizes[0] == pytest.approx(roots if distribute else np.ones(20), rel=1e-3)
    assert sizes[1] == pytest.approx(roots if distribute else found.values, rel=1e-3)


def test_distance_to_a_product() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    left, right = np.array([[1.0], [1.0], [1.0]], np.float32), np.array([[1.0, 2.0]], np.float32)
    assert blocks(values, 2).squared_distance(left, right) == 4 + 4 + 16 + 16
    assert blocks(values, 2).squared_norm() == 91


@pytest.mark.parametrize("shape", [(700, 300), (300, 300)])
def test_flat_spectra_are_cut_within_a_hair_of_the_best(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    spectrum = np.square(np.linalg.svd(values.astype(np.float64), compute_uv=False))
    total, best = float(spectrum.sum()), float(spectrum[20:].sum())
    found = truncated_svd(RowBlocks.of(values), 20, total=total, key=1, exact=False)
    assert missing(values, found) ** 2 * total / best - 1 < 1e-5  # without the polynomial it is over 5e-5


def test_bases_of_columns_that_depend_on_each_other_are_orthonormal_too() -> None:
    columns = np.random.default_rng(8).standard_normal((50, 6)).astype(np.float32)
    columns[:, 3] = columns[:, 0] + 1e-6 * columns[:, 1]
    columns[:, 5] = 0.0
    for given in (columns, columns[:, :3]):
        basis = low_rank._basis(given)
        assert basis.T @ basis == pytest.approx(np.eye(given.shape[1]), abs=1e-5)
        assert basis @ (basis.T @ given) == pytest.approx(given, abs=1e-5)


@pytest.mark.parametrize(("high", "degree"), [(1.05, 6), (2.0, 3), (50.0, 1)])
def test_a_step_on_the_gram_matrix_is_a_chebyshev_polynomial(high: float, degree: int) -> None:
    eigenvalues = np.linspace(0.0, high, 9, dtype=np.float32)
    gram = np.diag(eigenvalues)
    got = low_rank._filtered(gram, np.eye(9, dtype=np.float32), gram, 1.0, high)
    wanted = np.polynomial.chebyshev.chebval(2 * eigenvalues.astype(np.float64) - 1, [0] * degree + [1])
    assert got == pytest.approx(np.diag(wanted), abs=1e-4, rel=1e-5)
    assert abs(wanted[eigenvalues < 1]).max(initial=0.0) <= 1.0 < wanted[-1]
