"""Low-rank factors of a matrix: the truncated singular value decomposition, randomised or exact, and its spectrum.

The randomised one is subspace iteration (Halko, Martinsson, Tropp: "Finding structure with randomness", SIAM Review 53,
2011, arXiv:0909.4061, algorithms 4.4 and 5.1), repeated until a further step no longer lowers the error; on a Gram
matrix every step is a Chebyshev polynomial (Zhou, Saad, Tiago, Chelikowsky: "Self-consistent-field calculations using
Chebyshev-filtered subspace iteration", Journal of Computational Physics 219, 2006), which tells flat spectra apart in
a few steps. The exact one takes eigenvectors of the float64 Gram matrix, good to about 1e-8 of the largest singular
value, and polishes them on the matrix itself. Matrices are seen in blocks of rows; where they come from is not known
here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cuvee.numerics.row_blocks import Array, RowBlocks

GRAM_SIDE = 2048  # up to this many columns, iterating on the Gram matrix costs less than on the matrix
_MOST_STEPS = 12
_GAIN = 2e-4  # of what is still missing: a step that captures less ends the iteration
_ROUNDING = 1e-7  # of the whole: what float32 products cannot tell apart
_MOST_DEGREES = 6  # of a step's polynomial
_GROWTH = 1e2  # of the strongest direction over the weakest in one step: more would drown the weak ones in rounding
_WELL_CONDITIONED = 1e-2  # the least that a column may bring beside those before it, for the quick way to a basis


@dataclass(frozen=True)
class Svd:
    """A truncated decomposition `left @ diag(values) @ right` with orthonormal `left` columns and `right` rows."""

    left: Array
    values: Array
    right: Array

    def cut(self, rank: int) -> Svd:
        """The leading part of it."""
        return Svd(self.left[:, :rank], self.values[:rank], self.right[:rank])

    @property
    def transposed(self) -> Svd:
        """That of the transposed matrix."""
        return Svd(self.right.T, self.values, self.left.T)


def truncated_svd(matrix: RowBlocks, rank: int, *, total: float, key: int, exact: bool) -> Svd:
    """The leading `rank` singular values and vectors.

    Args:
        matrix: of any shape; cheapest if it has no more columns than rows.
        rank: at most the shorter side.
        total: the squared norm of the matrix, which tells what is still missing.
        key: what the random start is drawn from.
        exact: take the whole Gram matrix's eigenvectors instead of iterating.

    """
    rows, columns = matrix.shape
    width = width_of(rank, rows, columns)
    if exact and columns > rows:
        return _by_row_gram(matrix, rank)
    captured = -math.inf
    if exact:
        start = _leading(matrix.gram_64(), width)
    else:
        start = np.random.Generator(np.random.Philox(key)).standard_normal((columns, width)).astype(np.float32)
        if columns <= min(GRAM_SIDE, rows):
            start, captured = _iterated(matrix.gram().astype(np.float32), start, rank, total)
    best = _polished(matrix, start)
    for _ in range(1 if exact else _MOST_STEPS):
        was, captured = captured, _energy(best, rank)
        if _is_settled(captured, was, total):
            break
        best = _polished(matrix, best.right.T)
    return best.cut(rank)


def width_of(rank: int, rows: int, columns: int) -> int:
    """Of how many columns the iterated basis is: a few more than the rank, which makes it converge."""
    return min(rank + max(rank // 4, 16), rows, columns)


def singular_values(matrix: RowBlocks) -> Array:
    """All singular values, largest first, in float64; exact to about 1e-8 of the largest."""
    gram = matrix.row_gram() if matrix.shape[0] < matrix.shape[1] else matrix.gram_64()
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)))


def balanced(svd: Svd, *, distribute: bool) -> tuple[Array, Array]:
    """LoRA's A `[rank, columns]` and B `[rows, rank]` with B A the decomposition.

    Args:
        svd: the decomposition.
        distribute: give both the square roots of the singular values; else A takes them whole and B is orthonormal.

    """
    if not distribute:
        return svd.right * svd.values[:, None], svd.left
    roots = np.sqrt(svd.values)
    return svd.right * roots[:, None], svd.left * roots


def _polished(matrix: RowBlocks, start: Array) -> Svd:
    """The best decomposition within the range of `matrix @ start`: a step of subspace iteration."""
    basis = _basis(matrix.times(start.astype(np.float32)))
    projected = matrix.transposed_times(basis).astype(basis.dtype)
    right, values, small = np.linalg.svd(projected, full_matrices=False)
    return Svd(basis @ small.T, values, right.T)


def _by_row_gram(matrix: RowBlocks, rank: int) -> Svd:
    """Of a matrix with fewer rows than columns: left vectors from the rows' Gram matrix, the rest by projection."""
    left = _leading(matrix.row_gram(), rank).astype(np.float32)
    projected = matrix.transposed_times(left)
    right, values, small = np.linalg.svd(projected, full_matrices=False)
    return Svd(left @ small.T.astype(left.dtype), values.astype(left.dtype), right.T.astype(left.dtype))


def _leading(gram: Array, width: int) -> Array:
    """Eigenvectors of the `width` largest eigenvalues."""
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1][:, :width])


def _iterated(gram: Array, start: Array, rank: int, total: float) -> tuple[Array, float]:
    """`start` turned towards the leading eigenvectors of `gram`, and what it captures, which hardly grows any more."""
    basis = _basis(gram @ start)
    captured = -math.inf
    for _ in range(_MOST_STEPS):
        image = gram @ basis
        values, turn = np.linalg.eigh((basis.T @ image).astype(np.float64))
        was, captured = captured, float(values[::-1][:rank].sum())
        if _is_settled(captured, was, total):
            break
        turn = np.ascontiguousarray(turn[:, ::-1]).astype(gram.dtype)
        basis = _basis(_filtered(gram, basis @ turn, image @ turn, float(values[0]), float(values[-1])))
    return basis, captured


def _filtered(gram: Array, basis: Array, image: Array, low: float, high: float) -> Array:
    """A Chebyshev polynomial of `gram` times `basis`: small for eigenvalues below `low`, large for those above.

    Args:
        gram: positive semidefinite.
        basis: approximate eigenvectors, the strongest first.
        image: `gram @ basis`.
        low: the smallest of their eigenvalues.
        high: the largest.

    """
    if low <= _ROUNDING * high:
        return image
    reach = math.acosh(max(2.0 * high / low - 1.0, 1.0))
    degree = int(min(max(math.acosh(_GROWTH) / max(reach, 1e-9), 1.0), _MOST_DEGREES))
    before: Array = basis
    now: Array = image * np.float32(2.0 / low) - basis
    for _ in range(degree - 1):
        following = gram @ now
        following *= np.float32(4.0 / low)
        following -= now
        following -= now
        following -= before
        before, now = now, following
    return now


def _basis(columns: Array) -> Array:
    """An orthonormal basis of what the columns span.

    Of well-conditioned ones by their Gram matrix in float64 (Cholesky), ten times quicker than by reflections.
    """
    wide = columns.astype(np.float64)
    gram = wide.T @ wide
    norms = np.sqrt(gram.diagonal())
    if norms.min() > 0:
        try:
            lower = np.linalg.cholesky(gram / np.outer(norms, norms))
        except np.linalg.LinAlgError:  # the columns depend on each other
            lower = np.zeros((1, 1))
        if lower.diagonal().min() > _WELL_CONDITIONED:
            return np.asarray(columns @ (np.linalg.inv(lower).T / norms[:, None]).astype(columns.dtype))
    return np.asarray(np.linalg.qr(columns)[0])


def _is_settled(captured: float, was: float, total: float) -> bool:
    """Whether the last step captured hardly more than the one before it."""
    return captured - was <= _GAIN * max(total - captured, 0.0) + _ROUNDING * total


def _energy(svd: Svd, rank: int) -> float:
    return float(np.square(svd.values[:rank], dtype=np.float64).sum())
