"""How far two checkpoints' values lie apart, read block by block. Run as a script: prints one JSON object.

It says which tensors only one of them has, the largest and the mean absolute difference over all values that
both have, and the share of values that differ at all.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from headers import ITEM_BYTES, Tensor, stored_tensors

BLOCK_ELEMENTS = 1 << 20
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def difference(first: Path, second: Path) -> dict[str, object]:
    """The comparison of two checkpoints, as plain data."""
    ours, theirs = stored_tensors(first), stored_tensors(second)
    total, differing, count, largest, where = 0.0, 0, 0, 0.0, None
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape != theirs[name].shape:
            raise ValueError(f"{name} is {ours[name].shape} in one and {theirs[name].shape} in the other")
        for block, other in zip(_blocks(ours[name]), _blocks(theirs[name]), strict=True):
            apart = np.abs(block.astype(np.float64) - other.astype(np.float64))
            total += float(apart.sum())
            differing += int(np.count_nonzero(apart))
            count += apart.size
            # `not <=` rather than `>`, and never back: a NaN on one side must show.
            if not (math.isnan(largest) or apart.max() <= largest):
                largest, where = float(apart.max()), name
    return {
        "largest": largest,
        "largest_in": where,
        "mean": total / max(count, 1),
        "differing": differing / max(count, 1),
        "values": count,
        "only_first": sorted(ours.keys() - theirs.keys()),
        "only_second": sorted(theirs.keys() - ours.keys()),
    }


def _blocks(tensor: Tensor) -> Iterator[np.ndarray]:
    dtype = np.dtype(_DTYPES[tensor.dtype])
    elements = (tensor.stop - tensor.start) // ITEM_BYTES[tensor.dtype]
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        for done in range(0, elements, BLOCK_ELEMENTS):
            count = min(BLOCK_ELEMENTS, elements - done)
            yield np.frombuffer(stream.read(count * dtype.itemsize), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    print(json.dumps(difference(options.first, options.second)))


if __name__ == "__main__":
    main()
