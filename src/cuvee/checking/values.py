"""Whether stored values are finite, and tied ones equal: weights streamed once, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cuvee.checking.findings import Finding
from cuvee.layout.configs import ties_embeddings
from cuvee.layout.ties import copies_of_embedding, input_embedding
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Source, Stored

_BLOCK = 1 << 20
# dtype -> unsigned integer of its size, the bits without the sign, and the first pattern that is not finite.
_PATTERNS = {
    "F64": (np.uint64, (1 << 63) - 1, 0x7FF << 52),
    "F32": (np.uint32, (1 << 31) - 1, 0xFF << 23),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
}


def values(checkpoint: Checkpoint, threads: int) -> Iterator[Finding]:
    """Whether all numbers are finite, and copies of tied embeddings equal to them."""
    located = {uri: checkpoint.location.fetch(name) if name else Path(uri)
               for uri, name in checkpoint.weight_files.items()}  # fmt: skip
    with FileReader(lambda uri: located[uri]) as reader, ThreadPoolExecutor(threads) as pool:
        stored = {name: source for name, source in checkpoint.tensors.items() if isinstance(source, Stored)}
        counts = pool.map(lambda source: _not_finite(source, reader), stored.values())
        bad = {name: count for name, count in zip(stored, counts, strict=True) if count}
        if bad:
            worst = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:5])
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            yield Finding("values", "problem", f"{len(bad)} tensors hold NaN or infinities: {worst}{more}")
        else:
            yield Finding("values", "ok", "all finite")
        yield from _copies(checkpoint, reader)


def _not_finite(source: Stored, reader: FileReader) -> int:
    """How many elements are NaN or infinite."""
    if source.dtype not in _PATTERNS:
        return 0
    kind, mask, limit = _PATTERNS[source.dtype]
    size, count = itemsize(source.dtype), 0
    for start, stop in _spans(math.prod(source.shape)):
        bits = reader.read(source.file, source.offset + start * size, (stop - start) * size).view(kind)
        bits &= kind(mask)
        if int(bits.max()) >= limit:
            count += int(np.count_nonzero(bits >= kind(limit)))
    return count


def _copies(checkpoint: Checkpoint, reader: FileReader) -> Iterator[Finding]:
    """Heads and the like that a loader would overwrite with the embedding."""
    embedding = input_embedding(checkpoint.tensors)
    if embedding is None or not ties_embeddings(checkpoint.config) or not checkpoint.config:
        return
    said = "tie_word_embeddings" in (checkpoint.config_text or "")
    for name in copies_of_embedding(checkpoint.tensors, embedding):
        if not _equal(checkpoint.tensors[name], checkpoint.tensors[embedding], reader):
            text = f"{name} differs from {embedding}, which config.json ties it to: loaders will overwrite it"
            if not said:
                text = f"{name} differs from {embedding}; config.json does not say that they are not tied"
            yield Finding("ties", "problem" if said else "note", text)


def _equal(first: Source, second: Source, reader: FileReader) -> bool:
    if first.shape != second.shape:
        return False
    wide = np.dtype(np.float64)
    return all(
        np.array_equal(first.read(start, stop, reader, wide), second.read(start, stop, reader, wide))
        for start, stop in _spans(math.prod(first.shape))
    )


def _spans(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))
