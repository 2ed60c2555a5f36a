"""What a recipe wants of the output's vocabulary, as data: whose tokens, where single tokens come from, how long.

The fields' form was checked when the recipe was read (`tokens`); what vocabularies hold is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cuvee.recipe.notes import Notes
from cuvee.recipe.references import read_reference
from cuvee.recipe.schema import Recipe
from cuvee.tensors.reference import ModelRef


@dataclass(frozen=True)
class TokenRecipe:
    """Where a token's row comes from in models that lack it; in all of them if `force`.

    `default` is the ordinary rule; `model` takes the row that a model has for `token`, or its row `token_id`; `zero` a
    row of zeros.
    """

    kind: Literal["default", "model", "zero"] = "default"
    model: ModelRef | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class VocabularyRecipe:
    """The recipe's tokenizer settings.

    Attributes:
        source: `union`, `base`, or the model whose tokenizer the output gets.
        tokens: settings for single tokens; each is in the output, added if need be.
        multiple: what the number of rows is a multiple of.
        field: the recipe's field, for messages.

    """

    source: str | ModelRef
    tokens: Mapping[str, TokenRecipe]
    multiple: int
    field: str


def vocabulary_recipe(recipe: Recipe) -> VocabularyRecipe | None:
    """The tokenizer settings of a recipe, whichever field they stand in; None if it has none."""
    if recipe.tokenizer is not None:
        written, field = recipe.tokenizer, "tokenizer"
    elif recipe.tokenizer_source is not None:
        written, field = {"source": recipe.tokenizer_source}, "tokenizer_source"
    else:
        return None
    notes = Notes(recipe.marks)
    tokens = {token: _token(token, entry or {}, notes) for token, entry in (written.get("tokens") or {}).items()}
    named = written.get("source") or ("base" if recipe.base_model else "union")
    source = named if named in ("union", "base") else read_reference(named, (field,), notes)[0]
    return VocabularyRecipe(source, tokens, int(written.get("pad_to_multiple_of") or 1), field)


def _token(token: str, entry: Mapping[str, Any], notes: Notes) -> TokenRecipe:
    source, force = entry.get("source"), bool(entry.get("force", False))
    if source is None:
        return TokenRecipe(force=force)
    path = ("tokenizer", "tokens", token, "source")
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenRecipe("model", read_reference(source, path, notes)[0], token, force=force)
    if source["kind"] == "zero":
        return TokenRecipe("zero", force=force)
    model = read_reference(source["model"], (*path, "model"), notes)[0]
    return TokenRecipe("model", model, source.get("token"), source.get("token_id"), force)
