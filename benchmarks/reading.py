"""What it costs to read tensors that are stored otherwise than they are wanted: CPU nanoseconds an element, one thread.

    python benchmarks/reading.py [rows]

Files are written to a temporary folder and read from the page cache, in the engine's blocks, as float32.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.dequantised import Dequantised
from cuvee.tensors.location import Directory
from cuvee.tensors.parts import Part, Reshaped, part_of, reshape
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Joined, Source

COLUMNS = 4096
BLOCK = 1 << 18
EXPERTS = 64


def cost(source: Source, reader: FileReader) -> float:
    """CPU nanoseconds an element of reading `source` once; the best of five times."""
    size = int(np.prod(source.shape))
    times = []
    for _ in range(5):
        begin = time.process_time()
        for start in range(0, size, BLOCK):
            source.read(start, min(start + BLOCK, size), reader, np.dtype(np.float32))
        times.append((time.process_time() - begin) / size * 1e9)
    return min(times)


def sources(folder: Path, rows: int) -> dict[str, Source]:
    """The kinds of sources, all over one file."""
    random = np.random.default_rng(1)
    values = random.standard_normal((rows, COLUMNS)).astype(np.float32)
    save_file(
        {
            "plain": values.astype(ml_dtypes.bfloat16),
            "float8": values.astype(ml_dtypes.float8_e4m3fn),
            "blocks": np.ones((-(-rows // 128), COLUMNS // 128), np.float32),
            "rows": np.ones((rows, 1), np.float32),
        },
        folder / "model.safetensors",
    )
    found = open_checkpoint(Directory(folder), "m").tensors
    plain, float8 = found["plain"], found["float8"]
    each = rows // EXPERTS
    pieces = tuple(part_of(plain, 0, i * each, (i + 1) * each) for i in range(EXPERTS))
    return {
        "bfloat16, stored": plain,
        "float8, one scale for 128 x 128": Dequantised(float8, found["blocks"], (128, 128)),  # type: ignore[arg-type]
        "float8, one scale for a row": Dequantised(float8, found["rows"], (1, COLUMNS)),  # type: ignore[arg-type]
        "three joined": Joined(tuple(part_of(plain, 0, i * (rows // 3), (i + 1) * (rows // 3)) for i in range(3)), 0),
        f"{EXPERTS} experts stacked": Reshaped(Joined(pieces, 0), (EXPERTS, each, COLUMNS)),
        "one expert of a stack": part_of(reshape(plain, (EXPERTS, each, COLUMNS)), 0, 1, 2),
        "a third of each row": Part(plain, 1, COLUMNS // 4, COLUMNS // 2),
    }


def main() -> None:
    """Prints the table."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 6144
    with tempfile.TemporaryDirectory() as folder, FileReader() as reader:
        for name, source in sources(Path(folder), rows).items():
            print(f"{name:34} {cost(source, reader):6.2f} ns")


if __name__ == "__main__":
    main()
