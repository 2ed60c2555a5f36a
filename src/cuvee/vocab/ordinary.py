"""Which added tokens are ordinary words as well: those that their own model cuts text into without being told.

Gemma lists runs of line breaks and of spaces as added tokens; its merges make them, too. As added tokens of another
tokenizer they would be found anywhere in a text before it is cut, and a tokenizer that puts a space before each part of
a text (Llama 2's, T5's) would put one after each line break.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.vocab.tokenizer import Tokenizer
from cuvee.vocab.wellformed import check_merges

_MARKS = ("special", "single_word", "lstrip", "rstrip")


def ordinary_too(tokenizer: Tokenizer) -> frozenset[str]:
    """Added tokens that are looked for without any condition, and that the model makes by itself."""
    own = tokenizer.own
    found = {
        token for token, flags in tokenizer.added.items() if token in own and not any(flags[mark] for mark in _MARKS)
    }
    model = tokenizer.document["model"]
    if not found or "merges" not in model:
        return frozenset(found)
    single = {token for token in found if len(token) == 1}
    return frozenset(single if single == found else single | (found & _made(model)))


def _made(model: Mapping[str, Any]) -> set[str]:
    """What a BPE model's merges make; nothing where they are none, which is refused where they are needed."""
    merges: list[Any] = model["merges"]
    try:
        check_merges(merges)
    except ValueError:
        return set()
    prefix = len(model.get("continuing_subword_prefix") or "")
    pairs = (entry.split(" ", 1) if isinstance(entry, str) else entry for entry in merges)
    return {left + right[prefix:] for left, right in pairs}
