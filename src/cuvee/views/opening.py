"""Opens the checkpoints that a recipe names, by their headers, each as the merge will see it.

Views are put on here, one after another, so this is the place that knows their order; what each does is its own
module's affair.
"""

from __future__ import annotations

from cuvee.options import MergeOptions
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.views.opener import Opener


def open_inputs(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    """Every checkpoint that the recipe names, in its order.

    Raises:
        CuveeError: if one cannot be opened, or holds what this version cannot merge.

    """
    opener = Opener(recipe.base_model, options)
    return {ref: opener.open(ref) for ref in recipe.models()}
