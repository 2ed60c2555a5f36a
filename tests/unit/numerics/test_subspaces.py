"""Common spaces of low-rank updates against dense matrices in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.numerics.subspaces import Update, core_space, knots, stacked, svd_of

ROWS, COLUMNS = 23, 17


def updates(*ranks: int) -> list[Update]:
    rng = np.random.default_rng(sum(ranks))
    return [Update(rng.standard_normal((ROWS, rank)), rng.standard_normal((rank, COLUMNS))) for rank in ranks]


def dense(update: Update) -> Any:
    return update.up @ update.down


@pytest.mark.parametrize("space", [core_space, knots])
@pytest.mark.parametrize("ranks", [(3,), (2, 4, 3), (12, 12)])
def test_nothing_is_lost_on_the_way_there_and_back(space: Any, ranks: tuple[int, ...]) -> None:
    every = updates(*ranks)
    shared = space(every)
    for update, coordinates in zip(every, shared.coordinates, strict=True):
        assert dense(shared.back(coordinates)) == pytest.approx(dense(update), abs=1e-11)


def test_bases_are_orthonormal_and_cores_small() -> None:
    shared = core_space(updates(2, 3))
    assert shared.right is not None
    assert shared.left.T @ shared.left == pytest.approx(np.eye(5), abs=1e-12)
    assert shared.right @ shared.right.T == pytest.approx(np.eye(5), abs=1e-12)
    assert {core.shape for core in shared.coordinates} == {(5, 5)}


def test_core_bases_are_those_of_the_stacked_factors() -> None:
    every = updates(2, 3)
    left = np.linalg.svd(np.concatenate([update.up for update in every], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([update.down for update in every]), full_matrices=False)[2]
    shared = core_space(every)
    assert abs(shared.left.T @ left) == pytest.approx(np.eye(5), abs=1e-10)
    assert shared.right is not None
    assert abs(shared.right @ right.T) == pytest.approx(np.eye(5), abs=1e-10)


def test_knots_is_the_decomposition_of_the_dense_updates_side_by_side() -> None:
    every = updates(2, 3)
    u, s, vt = np.linalg.svd(np.concatenate([dense(update) for update in every], axis=1), full_matrices=False)
    shared = knots(every)
    assert np.linalg.norm(shared.left, axis=0) == pytest.approx(s[:5], rel=1e-10)
    assert abs((shared.left / s[:5]).T @ u[:, :5]) == pytest.approx(np.eye(5), abs=1e-9)
    assert abs(np.concatenate(shared.coordinates, axis=1)) == pytest.approx(abs(vt[:5]), abs=1e-9)


def test_knots_leaves_out_what_is_nothing() -> None:
    one = updates(3)[0]
    shared = knots([one, Update(one.up, 2 * one.down)])
    assert shared.left.shape == (ROWS, 3)


def test_stacked_updates_add_up() -> None:
    every = updates(2, 3)
    total = stacked(every, (0.5, -2.0))
    assert total.down.shape == (5, COLUMNS)
    assert dense(total) == pytest.approx(0.5 * dense(every[0]) - 2.0 * dense(every[1]), abs=1e-12)


def test_svd_of_a_product() -> None:
    (update,) = updates(6)
    found = svd_of(update, 4)
    u, s, vt = np.linalg.svd(dense(update))
    assert found.values == pytest.approx(s[:4], rel=1e-12)
    assert (found.left * found.values) @ found.right == pytest.approx((u[:, :4] * s[:4]) @ vt[:4], abs=1e-10)


def test_ranks_beyond_what_there_is_are_zeros() -> None:
    (update,) = updates(2)
    found = svd_of(update, 5)
    assert (found.left.shape, found.right.shape) == ((ROWS, 5), (5, COLUMNS))
    assert list(found.values[2:]) == [0, 0, 0]
    assert (found.left * found.values) @ found.right == pytest.approx(dense(update), abs=1e-12)
