"""A recipe's settings for single tokens as rules about rows: models found, tokens looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cuvee.errors import VocabularyError
from cuvee.recipe.schema import Recipe
from cuvee.recipe.vocabulary import TokenRecipe, VocabularyRecipe
from cuvee.tensors.reference import ModelRef
from cuvee.vocab.rows import Holder, TokenRule


def token_rules(
    recipe: Recipe, wanted: VocabularyRecipe, numbers: Mapping[ModelRef, int], holders: Sequence[Holder]
) -> dict[str, TokenRule]:
    """The rules for single tokens; tokens under the ordinary rule have none, unless it is forced.

    Args:
        recipe: for places in messages.
        wanted: its tokenizer settings.
        numbers: the position of each model in `holders`.
        holders: the models with a vocabulary.

    Raises:
        VocabularyError: if a rule names a model that is not merged, or a token that it does not have.

    """
    rules: dict[str, TokenRule] = {}
    for token, entry in wanted.tokens.items():
        where = recipe.marks.where(("tokenizer", "tokens", token, "source"))
        if entry.kind == "zero":
            rules[token] = TokenRule(None, force=entry.force)
        elif entry.kind == "model":
            rules[token] = _model_rule(token, entry, numbers, holders, where)
        elif entry.force:
            rules[token] = TokenRule(None, force=True, usual=True)
    return rules


def _model_rule(
    token: str, entry: TokenRecipe, numbers: Mapping[ModelRef, int], holders: Sequence[Holder], where: str
) -> TokenRule:
    number = numbers.get(entry.model) if entry.model else None
    if number is None:
        raise VocabularyError(
            f"token {token!r} is to come from {entry.model}, which is not merged or has no vocabulary",
            expected="one of " + ", ".join(holder.name for holder in holders),
            where=where,
            fix="name one of the recipe's models",
            token=token,
        )
    holder = holders[number]
    row = entry.token_id if entry.token is None else holder.row(entry.token)
    if row is None or row >= holder.rows:
        raise VocabularyError(
            f"{holder.name} has no row for token {token!r}",
            expected="a token with an id below the rows of its embedding",
            found=f"id {row} of {holder.rows} rows" if row is not None else f"no token {entry.token!r} with a row",
            where=where,
            fix="name another model, token or token_id",
            token=token,
        )
    return TokenRule(number, row, entry.force)
