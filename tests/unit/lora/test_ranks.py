"""Ranks by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.errors import PlanError
from cuvee.lora.ranks import above, by_energy, by_size

SPECTRA = {"a": np.array([4.0, 2.0, 1.0]), "b": np.array([3.0, 3.0])}
TOTALS = {"a": 21.0, "b": 18.0}


def test_above_is_strict() -> None:
    assert above(SPECTRA, 2.0) == {"a": 1, "b": 2}
    assert above(SPECTRA, 0.0) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("share", "ranks"),
    [(0.5, {"a": 1, "b": 1}), (16 / 21, {"a": 1, "b": 2}), (0.8, {"a": 2, "b": 2}), (1.0, {"a": 3, "b": 2})],
)
def test_smallest_rank_that_keeps_the_share(share: float, ranks: dict[str, int]) -> None:
    assert by_energy(SPECTRA, TOTALS, share) == ranks


def test_a_share_out_of_reach_takes_all_there_is() -> None:
    assert by_energy({"a": np.array([1.0])}, {"a": 100.0}, 0.9) == {"a": 1}


@pytest.mark.parametrize(
    ("budget", "ranks"),
    # Gains: a 16, 4, 1 at 10 bytes each; b 9, 9 at 5 bytes: b's are taken first (1.8 a byte), then a's 1.6, 0.4, 0.1.
    [(5, (0, 1)), (10, (0, 2)), (20, (1, 2)), (29, (1, 2)), (99, (3, 2))],
)
def test_bytes_go_where_they_keep_most(budget: int, ranks: tuple[int, int]) -> None:
    assert by_size(SPECTRA, {"a": 10, "b": 5}, budget) == dict(zip("ab", ranks, strict=True))


def test_values_of_zero_take_no_bytes() -> None:
    assert by_size({"a": np.array([1.0, 0.0])}, {"a": 1}, 10) == {"a": 1}


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="no factors"):
        by_size(SPECTRA, {"a": 10, "b": 5}, 4)
