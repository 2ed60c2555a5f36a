from __future__ import annotations

import pytest

from cuvee.errors import PlanError
from cuvee.planning import outline
from cuvee.planning.outline import Wanted, bounded


def wanted(inputs: int) -> Wanted:
    return Wanted("w", ("w",) * inputs, None, None, 0.0)  # type: ignore[arg-type]


def test_every_input_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline, "_MAX_INPUTS", 10)
    assert len(list(bounded([wanted(4), wanted(6)]))) == 2
    with pytest.raises(PlanError, match="more than a plan can hold"):
        list(bounded([wanted(4), wanted(7)]))


def test_what_is_without_end_ends() -> None:
    with pytest.raises(PlanError):
        for _ in bounded(iter(lambda: wanted(1 << 20), None)):
            pass
