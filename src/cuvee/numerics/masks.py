"""Masks that are drawn while a tensor is scanned, kept until it is merged: on the CPU a bit an element."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from cuvee.numerics.block import Array, Block

KEPT_BYTES = 1 << 26
"""The most that the masks of one tensor may take."""


def kept_bytes(size: int, models: int) -> int:
    """What masks for so many models of a tensor of `size` take on the CPU; 0 if that is too much to be kept."""
    needed = -(-size * models // 8)
    return needed if needed <= KEPT_BYTES else 0


@dataclass(frozen=True)
class KeptMasks:
    """The masks of a tensor's blocks, one a model.

    Attributes:
        elements: of the tensor, of all models together.

    """

    elements: int
    _kept: dict[tuple[int, int], list[Array]] = field(default_factory=dict)

    def put(self, block: Block, masks: list[Array]) -> None:
        """Keeps a block's masks, if those of the whole tensor are affordable."""
        packed = all(isinstance(mask, np.ndarray) for mask in masks)
        if self.elements <= KEPT_BYTES * (8 if packed else 1):
            self._kept[_place(block)] = [np.packbits(mask) for mask in masks] if packed else masks

    def of(self, block: Block) -> list[Array] | None:
        """The masks of a block; None if they were not kept, or only those of other blocks."""
        kept = self._kept.get(_place(block))
        if kept is None or not isinstance(block[0], np.ndarray):
            return kept
        shape = block[0].shape
        return [np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape) for bits in kept]


def _place(block: Block) -> tuple[int, int]:
    return block.start, math.prod(block[0].shape)
