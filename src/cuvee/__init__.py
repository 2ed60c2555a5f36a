"""Cuvee merges model checkpoints: complete, exact, small, fast and pleasant.

    import cuvee

    report = cuvee.merge("recipe.yml", "merged")

`merge`, `plan`, `check`, `describe`, `MergeOptions`, `MergeReport`, `Recipe`, `load_recipe` and `CuveeError` are the
public names. They are loaded on first use, so that `import cuvee` and `cuvee --help` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuvee.api import MergeReport, merge, plan
    from cuvee.errors import CuveeError
    from cuvee.inspection import check, describe
    from cuvee.options import MergeOptions
    from cuvee.recipe.load import load_recipe
    from cuvee.recipe.schema import Recipe

__version__ = "0.1.0"
__all__ = [
    "CuveeError",
    "MergeOptions",
    "MergeReport",
    "Recipe",
    "__version__",
    "check",
    "describe",
    "load_recipe",
    "merge",
    "plan",
]

_HOMES = {
    "merge": "cuvee.api",
    "plan": "cuvee.api",
    "check": "cuvee.inspection",
    "describe": "cuvee.inspection",
    "MergeReport": "cuvee.api",
    "MergeOptions": "cuvee.options",
    "CuveeError": "cuvee.errors",
    "Recipe": "cuvee.recipe.schema",
    "load_recipe": "cuvee.recipe.load",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cuvee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
