"""The short fuzzing: some hundred inputs for each parser; `make fuzz` runs 100,000 and keeps the table."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from support.fuzzing import TARGETS
from support.fuzzing_target import Target, taken


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_input_is_taken_or_refused(target: Target) -> None:
    @given(target.inputs)
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(data: bytes) -> None:
        taken(target, data)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_good_input_is_taken(target: Target) -> None:
    assert [seed for seed in target.seeds if not taken(target, seed)] == []
