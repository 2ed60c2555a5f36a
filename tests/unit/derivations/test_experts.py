"""Factors of stacked experts in PEFT's layout, against PEFT's own formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.derivations import adapters
from cuvee.derivations.experts import joined, parted
from cuvee.derivations.registry import Input, Inputs

RNG = np.random.default_rng(8)


def products(down: Any, up: Any, experts: int) -> Any:
    """The updates `[experts, out, in]`, as PEFT works them out."""
    return np.einsum("ore,eri->eoi", up.reshape(len(up), -1, experts), down.reshape(experts, -1, down.shape[1]))


def inputs(*arrays: Any) -> Inputs:
    sources = tuple(Input(a.shape, lambda start, stop, a=a: a.reshape(-1)[start:stop].copy()) for a in arrays)
    return Inputs(sources, map, 7)


@pytest.mark.parametrize("experts", [1, 3])
def test_factors_are_taken_apart_and_put_together(experts: int) -> None:
    down, up = RNG.standard_normal((2 * experts, 5)), RNG.standard_normal((4, 2 * experts))
    parts = parted(down, up, experts)
    assert [(a.shape, b.shape) for a, b in parts] == [((2, 5), (4, 2))] * experts
    assert np.stack([b @ a for a, b in parts]) == pytest.approx(products(down, up, experts))
    again = joined(parts)
    assert (again[0].tobytes(), again[1].tobytes()) == (down.tobytes(), up.tobytes())


def test_a_sum_adds_up_each_expert_s_ranks() -> None:
    one, two = ((RNG.standard_normal((3 * r, 5)), RNG.standard_normal((4, 3 * r))) for r in (2, 1))
    down, up = adapters.stack(
        inputs(*one, *two), present=(True, False, True), factors=(0.5, 9.0, -2.0), rank=3, experts=3
    )
    assert (down.shape, up.shape) == ((9, 5), (4, 9))
    assert products(down, up, 3) == pytest.approx(0.5 * products(*one, 3) - 2.0 * products(*two, 3))


def test_experts_are_drawn_for_apart() -> None:
    a, b = RNG.standard_normal((2, 5)), RNG.standard_normal((4, 2))
    down, up = joined([(a, b), (a, b)])
    got = adapters.merge_updates(
        inputs(down, up), present=(True,), scalings=(1.0,), rank=2, space="core", method="dare_linear", experts=2,
        weight=(1.0,), density=(0.5,), normalize=False, lambda_=1.0, int8_mask=False, rescale=True,
    )  # fmt: skip
    one, two = products(*got, 2)
    assert np.abs(one - two).max() > 1e-3


def test_factors_of_convolutions_keep_their_kernel() -> None:
    down, up = RNG.standard_normal((2, 3, 5, 5)), RNG.standard_normal((4, 2, 1, 1))
    got = adapters.stack(inputs(down, up, down, up), present=(True, True), factors=(1.0, 2.0), rank=4)
    assert (got[0].shape, got[1].shape) == ((4, 3, 5, 5), (4, 4, 1, 1))
    wanted = 3.0 * np.einsum("or,rijk->oijk", up[:, :, 0, 0], down)
    assert np.einsum("or,rijk->oijk", got[1][:, :, 0, 0], got[0]) == pytest.approx(wanted)
