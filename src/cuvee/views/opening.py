"""Opens the checkpoints that a recipe names, by their headers, each as the merge will see it.

Views are put on here, one after another, so this is the place that knows their order; what each does is its own
module's affair.
"""

from __future__ import annotations

from collections.abc import Iterable

from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.views.opener import Opener
from cuvee.views.tied import without_tied_copies


def open_inputs(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    """Every checkpoint that the recipe names, in its order.

    Raises:
        CuveeError: if one cannot be opened, or holds what this version cannot merge.

    """
    checkpoints = _open_checkpoints(recipe, options)
    _refuse_what_is_not_built(recipe, checkpoints.values())
    return checkpoints


def open_stored(ref: ModelRef, options: MergeOptions) -> Checkpoint:
    """The checkpoint that a reference names, as it is stored: without any view but its adapters.

    Raises:
        CuveeError: if it cannot be opened.

    """
    return Opener(None, options).open(ref)


def _open_checkpoints(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    opener = Opener(recipe.base_model, options, seen=without_tied_copies)
    return {ref: opener.open(ref) for ref in recipe.models()}


def _refuse_what_is_not_built(recipe: Recipe, checkpoints: Iterable[Checkpoint]) -> None:
    """Vocabulary settings change nothing where every model has the very same tokenizer; else they are refused."""
    if recipe.chat_template and recipe.chat_template != "auto":
        raise PlanError("this version of Cuvee does not set chat templates yet", fix="remove chat_template")
    wanted = recipe.tokenizer if recipe.tokenizer is not None else recipe.tokenizer_source
    if wanted is None:
        return
    tokenizers = {
        tuple((name, c.location.read(name, 0, size)) for name, size in c.files.items() if name in _TOKENIZERS)
        for c in checkpoints
    }
    tokens = recipe.tokenizer is not None and set(recipe.tokenizer) - {"source"}
    if len(tokenizers) > 1 or tokens:
        raise PlanError(
            "this version of Cuvee does not map vocabularies onto each other yet",
            found="tokenizer settings for single tokens or padding" if tokens else "models with different tokenizers",
            fix="merge models that share a tokenizer, and leave the tokenizer settings out",
        )


_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
)
