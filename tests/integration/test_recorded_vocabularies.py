"""Vocabularies that differ: every token's rows are those that mergekit 0.1.5 gave it, within one rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cuvee
from support.recorded_vocabularies import KINDS, RESULTS, SOURCES, TABLES, models, recipe
from support.vocabularies import ids_in, state_in


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_mergekits(kind: str, source: str, tmp_path: Path) -> None:
    with np.load(RESULTS) as file:
        homes = models(tmp_path, {name: str(file[f"{kind}/{name}"]) for name in ("base", "x", "y")})
        tokens = [str(token) for token in file[f"{kind}/{source}/tokens"]]
        recorded = {table: file[f"{kind}/{source}/{table}"] for table in TABLES}
    out = cuvee.merge(recipe(homes, source), tmp_path / "out").out
    ids, state = ids_in(out), state_in(out)
    assert sorted(ids) == tokens
    step = float(np.finfo(np.float32).eps)
    for table, rows in recorded.items():
        ours = np.float64(state[table][[ids[token] for token in tokens]])
        np.testing.assert_allclose(ours, np.float64(rows), rtol=step, atol=step / 100)
