"""How PEFT lays out the factors of stacked experts: taken apart, and put together. What they do is not known here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cuvee.derivations.registry import Array


def parted(down: Array, up: Array, experts: int) -> list[tuple[Array, Array]]:
    """A `[rank, in]` and B `[out, rank]` of each expert.

    Args:
        down: A `[experts * rank, in]`: one expert's rows behind another's.
        up: B `[out, rank * experts]`: column by column one of each expert.
        experts: how many.

    """
    if experts == 1:
        return [(down, up)]
    return [(part, up[:, number::experts]) for number, part in enumerate(np.split(down, experts))]


def joined(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """A and B of all experts, from those of each, which are of one rank."""
    if len(parts) == 1:
        return parts[0]
    downs, ups = zip(*parts, strict=True)
    return np.concatenate(downs), np.stack(ups, axis=2).reshape(len(ups[0]), -1)
