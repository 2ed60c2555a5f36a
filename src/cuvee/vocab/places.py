"""Where the tokens of one vocabulary stand in another, as an array over all of them.

Looking 150 000 texts up takes longer than anything that is done with the answer, so it is kept and completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress, repeat
from typing import Any

import numpy as np

from cuvee.tensors.rowmaps import ABSENT

Index = np.ndarray[Any, np.dtype[np.int32]]
Places = tuple[tuple[Mapping[str, int], Index], ...]
"""Vocabularies with the places of their tokens in one that is understood."""


def places_in(ids: Mapping[str, int], tokens: Mapping[str, int], known: Index | None = None) -> Index:
    """The ids that `tokens` have in the vocabulary `ids`, in their order; `ABSENT` for those that it lacks.

    Args:
        ids: the vocabulary.
        tokens: the tokens of another; what they map to does not count.
        known: the same answer for an earlier, shorter form of `ids`.

    """
    if known is None:
        return np.fromiter(map(ids.get, tokens, repeat(ABSENT)), np.int32, len(tokens))
    new = known < 0
    found: Index = known.copy()
    found[new] = np.fromiter(map(ids.get, compress(tokens, new.tolist()), repeat(ABSENT)), np.int32)
    return found


def known_places(places: Places, tokens: Mapping[str, int]) -> Index | None:
    """What is known of this very vocabulary."""
    return next((found for vocabulary, found in places if vocabulary is tokens), None)
