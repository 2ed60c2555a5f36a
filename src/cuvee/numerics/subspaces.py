"""Low-rank updates brought into one small common space, without ever forming the matrices that they update.

An update is `B A` with B `[rows, rank]` and A `[rank, columns]`. K of them are described by one basis and K small
arrays, on which any merge method can act; what it makes of them is brought back into factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.numerics.low_rank import Svd
from cuvee.numerics.row_blocks import Array


@dataclass(frozen=True)
class Update:
    """`up @ down`, with `up` `[rows, rank]` and `down` `[rank, columns]`."""

    up: Array
    down: Array

    @property
    def norm(self) -> float:
        """The Frobenius norm of the product, from the factors' Gram matrices in float64."""
        up, down = self.up.astype(np.float64), self.down.astype(np.float64)
        return float(np.sqrt(max(np.vdot(up.T @ up, down @ down.T), 0.0)))

    def times(self, factor: float) -> Update:
        """The product times a number, which B takes."""
        return self if factor == 1.0 else Update(self.up * factor, self.down)


@dataclass(frozen=True)
class Shared:
    """K updates in one space: update i is `left @ coordinates[i] @ right`.

    Attributes:
        left: `[rows, k]`.
        coordinates: one array for each update, all of one shape.
        right: `[l, columns]`; None if the coordinates reach to the columns themselves.

    """

    left: Array
    coordinates: tuple[Array, ...]
    right: Array | None

    def back(self, merged: Array) -> Update:
        """The update whose coordinates are `merged`."""
        return Update(self.left, merged if self.right is None else merged @ self.right)


def core_space(updates: Sequence[Update]) -> Shared:
    """Orthonormal bases of all B and of all A, and each update's core matrix between them.

    Core Space (arXiv:2509.17786): U from the singular value decomposition of [B_1 ... B_K], V of [A_1; ...; A_K]; the
    core of update i is U^T B_i A_i V, and nothing is lost: U U^T B_i = B_i and A_i V V^T = A_i.
    """
    left = _basis(np.concatenate([update.up for update in updates], axis=1))
    right = _basis(np.concatenate([update.down for update in updates]).T)
    cores = tuple((left.T @ update.up) @ (update.down @ right) for update in updates)
    return Shared(left, cores, right.T)


def knots(updates: Sequence[Update]) -> Shared:
    """One left basis for all updates laid side by side, scaled by its singular values; the coordinates are the V_i.

    KnOTS (arXiv:2410.19735): [B_1 A_1 ... B_K A_K] = U S [V_1 ... V_K]; merge methods act on the V_i. The decomposition
    is that of the triangular factors of the B and A, so that nothing of the updates' size is formed.
    """
    left, inner = np.linalg.qr(np.concatenate([update.up for update in updates], axis=1))
    ends = np.cumsum([update.up.shape[1] for update in updates])
    rights = [np.linalg.qr(update.down.T) for update in updates]
    blocks = [part @ r.T for part, (_, r) in zip(np.split(inner, ends[:-1], axis=1), rights, strict=True)]
    u, values, vt = np.linalg.svd(np.concatenate(blocks, axis=1), full_matrices=False)
    kept = values > values[0] * _NOTHING if values.size else values > 0
    widths = np.cumsum([r.shape[0] for _, r in rights])
    parts = np.split(vt[kept], widths[:-1], axis=1)
    coordinates = tuple(part @ q.T for part, (q, _) in zip(parts, rights, strict=True))
    return Shared((left @ u[:, kept]) * values[kept], coordinates, None)


def stacked(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """The weighted sum of updates, of the ranks' sum: their A one above another, their weighted B side by side."""
    ups = [update.up * weight for update, weight in zip(updates, weights, strict=True)]
    return Update(np.concatenate(ups, axis=1), np.concatenate([update.down for update in updates]))


def svd_of(update: Update, rank: int) -> Svd:
    """The leading `rank` singular values and vectors of `up @ down`, filled up with zeros where there are fewer."""
    left, inner_left = np.linalg.qr(update.up)
    right, inner_right = np.linalg.qr(update.down.T)
    u, values, vt = np.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
    found = Svd(left @ u, values, vt @ right.T).cut(rank)
    lacking = rank - found.values.size
    if lacking <= 0:
        return found
    pad = ((0, 0), (0, lacking))
    return Svd(np.pad(found.left, pad), np.pad(found.values, pad[1]), np.pad(found.right, pad[::-1]))


_NOTHING = 1e-6  # relative to the largest: singular values that float32 factors cannot tell from zero


def _basis(matrix: Array) -> Array:
    """Left singular vectors of a tall matrix; through its triangular factor, which costs less."""
    q, r = np.linalg.qr(matrix)
    u, _, _ = np.linalg.svd(r, full_matrices=False)
    return np.asarray(q @ u)
