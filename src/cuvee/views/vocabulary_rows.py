"""One model with its vocabulary tensors in the output's order: rows gathered from its own and other models' tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.errors import VocabularyError
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.tensors.rowmaps import encode_map
from cuvee.tensors.sources import RowMean, Rows, Source
from cuvee.views.vocabulary_sizes import rows_of
from cuvee.vocab.rows import RowMaps
from cuvee.vocab.tokenizer import Tokenizer


@dataclass(frozen=True)
class VocabularyModel:
    """A model with a vocabulary."""

    ref: ModelRef
    checkpoint: Checkpoint
    axes: Mapping[str, int]
    tokenizer: Tokenizer

    @property
    def rows(self) -> int:
        """Rows that all of its vocabulary tensors have."""
        return rows_of(self.checkpoint, self.axes)


def with_rows(number: int, models: Sequence[VocabularyModel], maps: RowMaps) -> Checkpoint:
    """One model with every vocabulary tensor in the output's order."""
    model = models[number]
    index = maps.index[number]
    used = [table for table in range(len(models)) if (index[table] >= 0).any()] or [number]
    padded = maps.rows > maps.tokens
    texts = [encode_map(index[table][: maps.tokens]) for table in used]
    as_it_is = used == [number] and not padded and bool((index[number] == np.arange(maps.rows)).all())
    if padded:
        filler = np.full(maps.rows, -1, np.int32)
        filler[maps.tokens :] = 0
        tail = encode_map(filler)
        texts_padded = [encode_map(index[table]) for table in used]
    changed: dict[str, Source] = {}
    for name, axis in model.axes.items():
        if as_it_is and model.checkpoint.tensors[name].shape[axis] == maps.rows:
            continue
        tables = [_counterpart(name, model, models[table]) for table in used]
        rows = Rows(tuple(tables), tuple(texts), maps.tokens, axis)
        if padded:
            mean = RowMean(rows, maps.tokens, axis)
            rows = Rows((*tables, mean), (*texts_padded, tail), maps.rows, axis)
        changed[name] = rows
    tensors = {name: changed.get(name, source) for name, source in model.checkpoint.tensors.items()}
    return replace(model.checkpoint, tensors=tensors)


def _counterpart(name: str, model: VocabularyModel, other: VocabularyModel) -> Source:
    """The tensor of another model that plays the part of `name`: itself, or the embedding that its head is tied to."""
    mine = model.checkpoint.tensors[name]
    axis = model.axes[name]
    theirs = other.checkpoint.tensors.get(name) if name in other.axes else None
    if theirs is None:
        same = [
            n
            for n, at in other.axes.items()
            if at == axis and len(other.checkpoint.tensors[n].shape) == len(mine.shape)
        ]
        theirs = other.checkpoint.tensors[same[0]] if len(same) == 1 else None
    width = math.prod(mine.shape[axis + 1 :])
    if theirs is None or math.prod(theirs.shape[axis + 1 :]) != width:
        raise VocabularyError(
            f"rows of {name!r} cannot be taken from {other.checkpoint.name}",
            expected=f"a tensor with rows of {width} numbers",
            found="none" if theirs is None else f"rows of {math.prod(theirs.shape[axis + 1 :])}",
            fix="merge models of one architecture and size",
            tensor=name,
        )
    return theirs
