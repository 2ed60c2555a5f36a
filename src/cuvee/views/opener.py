"""Opens what a reference means: a model, a model with adapters on it, or an adapter whose base is named elsewhere.

Each location is opened once, so that five adapters on one base share its headers. What comes after (names,
vocabularies) is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.adapters.place import CONFIG, is_adapter
from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Location
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef, looks_like_hub_id
from cuvee.views.lifted import lifted
from cuvee.views.module_folders import with_module_folders

if TYPE_CHECKING:
    from cuvee.adapters.adapter import Adapter


def conversions() -> Path:
    """Where state dicts lie that had to be rewritten before they could be read in ranges."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cuvee" / "converted"


class Opener:
    """Opens the references of one recipe.

    Args:
        base_model: the recipe's base model: that of adapters that do not name their own.
        options: says where downloads are kept.
        seen: the views that are put on a model before its adapters.

    """

    def __init__(
        self,
        base_model: ModelRef | None,
        options: MergeOptions,
        seen: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint,
    ) -> None:
        self._base_model = base_model
        self._seen = seen
        self._downloads = Path(options.transformers_cache).expanduser() if options.transformers_cache else None
        self._converted = conversions()
        self._locations: dict[ModelRef, Location] = {}
        self._models: dict[ModelRef, Checkpoint] = {}
        self._adapters: dict[ModelRef, Adapter] = {}

    def open(self, ref: ModelRef) -> Checkpoint:
        """The checkpoint that `ref` means, with its adapters on it."""
        checkpoint = self._model(replace(ref, adapters=()), asked=())
        for adapter in ref.adapters:
            checkpoint = self._with_adapter(checkpoint, adapter, ref)
        return checkpoint

    def _model(self, ref: ModelRef, asked: tuple[ModelRef, ...]) -> Checkpoint:
        """A model; or, if there is but an adapter, that adapter on the base that it or the recipe names."""
        if ref not in self._models:
            location = self._location(ref)
            if is_adapter(location):
                base = self._model(self._base_of(ref, (*asked, ref)), (*asked, ref))
                self._models[ref] = self._with_adapter(base, ref, ref)
            else:
                self._models[ref] = self._seen(self._stored(location, str(ref)))
        return self._models[ref]

    def _base_of(self, ref: ModelRef, asked: tuple[ModelRef, ...]) -> ModelRef:
        config = self.adapter(ref).config
        named = config.base_model
        # A path on the machine of whoever trained the adapter says nothing here.
        if named and (os.path.exists(os.path.expanduser(named)) or looks_like_hub_id(named)):  # noqa: PTH110, PTH111
            base = ModelRef(named, config.revision)
        elif self._base_model is not None:
            base = self._base_model
        else:
            raise PlanError(
                f"{ref} is an adapter, and nothing says on which base it goes",
                expected=f"a base named in its {CONFIG}, or the recipe's base_model",
                found=f"{named}, which is not here" if named else "neither",
                fix=f"write BASE+{ref}",
            )
        if base in asked or base.adapters:
            raise PlanError(f"{ref} is an adapter, and its base {base} is one too", fix=f"write BASE+{ref}")
        return base

    def _with_adapter(self, checkpoint: Checkpoint, adapter: ModelRef, whole: ModelRef) -> Checkpoint:
        from cuvee.views.adapters import with_adapter  # most models come without any

        return with_adapter(checkpoint, self.adapter(adapter), str(whole))

    def adapter(self, ref: ModelRef) -> Adapter:
        """The adapter at `ref`."""
        from cuvee.adapters.adapter import open_adapter

        if ref not in self._adapters:
            self._adapters[ref] = open_adapter(self._location(ref), str(ref), self._converted)
        return self._adapters[ref]

    def _stored(self, location: Location, name: str) -> Checkpoint:
        return with_module_folders(open_checkpoint(location, name, self._converted), self._converted)

    def _location(self, ref: ModelRef) -> Location:
        if ref not in self._locations:
            self._locations[ref] = lifted(open_location(ref, self._downloads))
        return self._locations[ref]
