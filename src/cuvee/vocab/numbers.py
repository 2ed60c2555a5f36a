"""Whether other programs will number a new tokenizer's tokens as it is meant: the tokenizers library has the last word.

A model's own tokens have the ids that are written. Added tokens have those that the library makes of them: the model's,
where that has them, and else numbers that go on from the model's size. So it is asked about the tokenizer as it will be
written, in a model of those tokens alone: all that counts from the model's size on is moved down with it. Asking about
all tokens takes a hundred times as long and tells the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.vocab.json_text import written


def check_numbers(
    document: Mapping[str, Any], ids: Mapping[str, int], added: Mapping[str, Mapping[str, Any]], name: str
) -> None:
    """Passes a tokenizer.json whose tokens the library gives the ids `ids`.

    Args:
        document: the tokenizer.json; merges do not count.
        ids: all tokens, in the model or added.
        added: the added ones.
        name: what messages call the model.

    Raises:
        VocabularyError: if the library reads it otherwise, or not at all.

    """
    from tokenizers import Tokenizer as Library

    small, removed = _small(document["model"], added)
    inside = small["vocab"] if isinstance(small["vocab"], Mapping) else {}
    expected = {token: inside.get(token, ids[token] - removed) for token in added}
    try:
        library = Library.from_str(json_of({**document, "model": small}, name))
    except VocabularyError:
        raise
    except Exception as error:
        raise VocabularyError(
            f"the tokenizer made from that of {name} cannot be read", found=str(error)[:300], where="tokenizer.json"
        ) from error
    given = {token: library.token_to_id(token) for token in added}
    wrong = [token for token in added if given[token] != expected[token]]
    count = library.get_vocab_size(with_added_tokens=True) + removed
    if wrong or count != len(ids):
        found = {token: None if (number := given[token]) is None else number + removed for token in wrong[:3]}
        raise VocabularyError(
            f"the tokenizer made from that of {name} gives {len(wrong)} tokens other ids",
            expected=f"{len(ids)} tokens; " + ", ".join(f"{token!r} {ids[token]}" for token in found),
            found=f"{count} tokens; " + ", ".join(f"{token!r} {number}" for token, number in found.items()),
            fix="use `tokenizer: {source: base}`",
        )


def json_of(document: Mapping[str, Any], name: str) -> str:
    """The text of a tokenizer.json.

    Raises:
        VocabularyError: if it holds what no file can.

    """
    try:
        return written(document)
    except ValueError as error:
        raise VocabularyError(
            f"the tokenizer made from that of {name} cannot be written", found=str(error)[:300], where="tokenizer.json"
        ) from error


def _small(model: Mapping[str, Any], added: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The model with no tokens but those that are added ones, too, and how many it has more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # pieces are numbered by their places, so none can be left out
        return dict(model), 0
    kept = [token for token in dict.fromkeys([*added, model.get("unk_token")]) if token in vocabulary]
    removed = len(vocabulary) - len(kept)
    numbers = {token: vocabulary[token] - removed for token in kept}
    low = [token for token in kept if vocabulary[token] < len(vocabulary)]
    return {**model, "vocab": numbers | {token: place for place, token in enumerate(low)}}, removed
