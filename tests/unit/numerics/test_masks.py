"""What is kept comes back as it was, for the same blocks only."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.numerics import masks as rooms
from cuvee.numerics.block import Block
from cuvee.numerics.masks import KeptMasks, kept_bytes


def test_masks_come_back_for_their_own_block() -> None:
    random = np.random.default_rng(0)
    blocks = [Block((np.zeros((3, 5), np.float32),) * 2, start) for start in (0, 15)]
    drawn = [[random.random((3, 5)) < 0.5 for _ in range(2)] for _ in blocks]
    kept = KeptMasks(60)
    for block, masks in zip(blocks, drawn, strict=True):
        kept.put(block, masks)
    for block, masks in zip(blocks, drawn, strict=True):
        found = kept.of(block)
        assert found is not None
        assert [mask.dtype for mask in found] == [np.bool_] * 2
        np.testing.assert_array_equal(found, masks)
    assert kept.of(Block((np.zeros(30, np.float32),) * 2)) is None


@pytest.mark.parametrize(("limit", "is_kept"), [(3, True), (2, False)])
def test_a_bit_an_element_is_kept_where_all_are_affordable(
    limit: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "KEPT_BYTES", limit)
    assert kept_bytes(10, 2) == (3 if is_kept else 0)
    block, kept = Block((np.zeros(10, np.float32),) * 2), KeptMasks(20)
    kept.put(block, [np.ones(10, bool)] * 2)
    assert (kept.of(block) is not None) == is_kept


def test_torch_keeps_its_own_masks() -> None:
    import torch

    block, masks, kept = Block((torch.zeros(10),)), [torch.ones(10, dtype=torch.bool)], KeptMasks(10)
    kept.put(block, masks)
    assert kept.of(block) is masks
