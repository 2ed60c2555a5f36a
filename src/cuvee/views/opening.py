"""Opens the checkpoints that a recipe names, by their headers, each as the merge will see it.

Views are put on here, one after another, so this is the place that knows their order; what each does is its own
module's affair.
"""

from __future__ import annotations

from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.views.dequantised import dequantised
from cuvee.views.opener import Opener
from cuvee.views.renamed import renamed
from cuvee.views.tied import without_tied_copies


def open_inputs(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    """Every checkpoint that the recipe names, in its order.

    Raises:
        CuveeError: if one cannot be opened, or holds what this version cannot merge.

    """
    checkpoints = _open_checkpoints(recipe, options)
    base = checkpoints[recipe.base_model or recipe.modules[0].slices[0].sources[0].model]
    return {ref: _under_names_of(base, opened) for ref, opened in checkpoints.items()}


def open_model(ref: ModelRef, options: MergeOptions) -> Checkpoint:
    """The checkpoint that a reference names, by itself, as a merge sees it.

    Raises:
        CuveeError: if it cannot be opened, or holds what this version cannot merge.

    """
    return Opener(None, options, _as_numbers).open(ref)


def open_stored(ref: ModelRef, options: MergeOptions) -> Checkpoint:
    """The checkpoint that a reference names, as it is stored: without any view but its adapters.

    Raises:
        CuveeError: if it cannot be opened.

    """
    return Opener(None, options).open(ref)


def _open_checkpoints(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    """Every checkpoint with its adapters, which know its own names, and then under the names that the recipe gives."""
    opener = Opener(recipe.base_model, options, _as_numbers)
    opened: dict[ModelRef, Checkpoint] = {}
    for ref in recipe.models():
        seen = opener.open(ref)
        try:
            opened[ref] = renamed(seen, recipe.renames.get(ref, ()))
        except PlanError as error:
            raise error.at(_place_of_rename(recipe, ref, error.pattern)) from None
    return opened


def _under_names_of(base: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    mine, theirs = ({(name, source.shape) for name, source in each.tensors.items()} for each in (checkpoint, base))
    if mine <= theirs or theirs <= mine:
        return checkpoint  # as most models are: the modules that know the rest are not even loaded for them
    from cuvee.views.names import matched

    return matched(checkpoint, base)


def _as_numbers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with all its tensors, each once, and none quantised."""
    return dequantised(without_tied_copies(checkpoint))


def _place_of_rename(recipe: Recipe, ref: ModelRef, pattern: str) -> str:
    sources = [source for module in recipe.modules for slice_ in module.slices for source in slice_.sources]
    listed = next(source for source in sources if source.model == ref)
    return recipe.marks.where((*listed.path, "rename", pattern))
