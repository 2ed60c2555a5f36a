"""Low-rank factors of a matrix: the truncated singular value decomposition, randomised or exact, and its spectrum.

The randomised one is subspace iteration (Halko, Martinsson, Tropp: "Finding structure with randomness", SIAM Review 53,
2011, arXiv:0909.4061, algorithms 4.4 and 5.1), repeated until a further step no longer lowers the error. The exact one
takes eigenvectors of the float64 Gram matrix, good to about 1e-8 of the largest singular value, and polishes them on
the matrix itself. Matrices are seen in blocks of rows; where they come from is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cuvee.numerics.row_blocks import Array, RowBlocks

GRAM_SIDE = 2048  # up to this many columns, iterating on the Gram matrix costs less than on the matrix
_MOST_STEPS = 12
_GAIN = 2e-4  # of what is still missing: a step that captures less ends the iteration
_ROUNDING = 1e-7  # of the whole: what float32 products cannot tell apart


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
    if exact:
        start = _leading(matrix.gram_64(), width)
    else:
        start = np.random.Generator(np.random.Philox(key)).standard_normal((columns, width))
        if columns <= min(GRAM_SIDE, rows):
            start = _iterated(matrix.gram(), start, rank, total)
    best = _polished(matrix, start)
    for _ in range(1 if exact else _MOST_STEPS):
        before, best = best, _polished(matrix, best.right.T)
        captured, was = _energy(best, rank), _energy(before, rank)
        if captured - was <= _GAIN * max(total - captured, 0.0) + _ROUNDING * total:
            break
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
    basis, _ = np.linalg.qr(matrix.times(start.astype(np.float32)))
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


def _iterated(gram: Array, start: Array, rank: int, total: float) -> Array:
    """`start` turned towards the leading eigenvectors of `gram`, until what it captures grows no further."""
    gram = gram.astype(np.float32)
    basis, _ = np.linalg.qr(gram @ start.astype(np.float32))
    captured = 0.0
    for _ in range(2 * _MOST_STEPS):
        image = gram @ basis
        values = np.linalg.eigvalsh((basis.T @ image).astype(np.float64))[::-1]
        was, captured = captured, float(values[:rank].sum())
        basis, _ = np.linalg.qr(image)
        if captured - was <= _GAIN * max(total - captured, 0.0) + _ROUNDING * total:
            break
    return basis


def _energy(svd: Svd, rank: int) -> float:
    return float(np.square(svd.values[:rank], dtype=np.float64).sum())
