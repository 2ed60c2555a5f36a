"""Opens the checkpoints that a recipe names, by their headers, each as the merge will see it.

Views are put on here, one after another, so this is the place that knows their order; what each does is its own
module's affair.
"""

from __future__ import annotations

import os
from pathlib import Path

from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.hub import open_location
from cuvee.tensors.reference import ModelRef


def open_inputs(recipe: Recipe, options: MergeOptions) -> dict[ModelRef, Checkpoint]:
    """Every checkpoint that the recipe names, in its order.

    Raises:
        CuveeError: if one cannot be opened, or holds what this version cannot merge.

    """
    cache = Path(options.transformers_cache).expanduser() if options.transformers_cache else None
    converted = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cuvee" / "converted"
    opened: dict[ModelRef, Checkpoint] = {}
    for ref in recipe.models():
        if ref.adapters:
            raise PlanError(
                f"{ref} names an adapter, and this version of Cuvee does not merge adapters yet",
                fix=f"merge the adapter into {ref.path} with PEFT's merge_and_unload first, and name the result",
            )
        opened[ref] = open_checkpoint(open_location(ref, cache), str(ref), converted)
    return opened
