"""The rank of every module: a common bound, a share of its change, or what an adapter of a given size can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cuvee.errors import PlanError
from cuvee.numerics.row_blocks import Array

Spectra = Mapping[str, Array]
"""Module or tensor name -> its singular values, largest first."""


def above(spectra: Spectra, epsilon: float) -> dict[str, int]:
    """How many singular values of each are larger than `epsilon`."""
    return {name: int(np.count_nonzero(values > epsilon)) for name, values in spectra.items()}


def by_energy(spectra: Spectra, totals: Mapping[str, float], share: float) -> dict[str, int]:
    """For each the smallest rank whose squared singular values add up to `share` of its total; all it has if none do.

    Args:
        spectra: singular values.
        totals: squared norms.
        share: in (0, 1].

    """
    ranks = {}
    for name, values in spectra.items():
        reached = np.cumsum(np.square(values, dtype=np.float64)) >= share * totals[name] * (1 - 1e-12)
        ranks[name] = int(np.argmax(reached)) + 1 if reached.any() else len(values)
    return ranks


def by_size(spectra: Spectra, costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """The ranks that keep most of all modules' squared change within `budget` bytes; some may be 0.

    Every further singular value of a module costs the same and brings no more than the one before it, so taking them
    one by one by what they bring a byte is the best there is, up to the last one that does not fit.

    Args:
        spectra: singular values.
        costs: bytes that one rank of each takes.
        budget: bytes for all.

    Raises:
        PlanError: if nothing fits.

    """
    names: Sequence[str] = list(spectra)
    gains = np.concatenate([np.square(spectra[name], dtype=np.float64) / costs[name] for name in names])
    owners = np.repeat(np.arange(len(names)), [len(spectra[name]) for name in names])
    ranks = dict.fromkeys(names, 0)
    left = budget
    for index in np.argsort(-gains, kind="stable"):
        name = names[owners[index]]
        if gains[index] > 0 and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    if not any(ranks.values()):
        raise PlanError(
            "an adapter of this size holds no factors at all",
            expected=f"at least {min(costs.values())} bytes for them",
            found=f"{max(budget, 0)} bytes left of --max-bytes",
            fix="raise --max-bytes, or leave out what is saved whole with --skip-undecomposable",
        )
    return ranks
