"""The base model that adapters go on, opened only where tensors that they hold whole are merged as changes from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter
from cuvee.errors import CuveeError, PlanError
from cuvee.layout.ties import tied_to
from cuvee.lora.recipe import AdapterRecipe
from cuvee.options import MergeOptions
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef, looks_like_hub_id
from cuvee.tensors.sources import Source
from cuvee.views.adapter_names import BaseNames
from cuvee.views.adapters import with_adapter
from cuvee.views.opening import open_model


@dataclass(frozen=True)
class OnBase:
    """The base model as it is, and with each adapter on it."""

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
    names: BaseNames

    def sources(self, name: str) -> tuple[Source, ...] | None:
        """The base's tensor that adapters call `name`, then what each makes of it; None if the base has none."""
        own = own_name(self.base, self.names, name)
        # What an adapter tells apart is a tensor of its own in that adapter's model only.
        found = [held_as(own, each) for each in (self.base, *self.tuned)]
        return None if any(source is None for source in found) else tuple(source for source in found if source)


def put_on_base(
    recipe: AdapterRecipe, adapters: Sequence[Adapter], differing: Sequence[str], options: MergeOptions
) -> OnBase:
    """The base, with each adapter on it; of either only headers are read.

    Args:
        recipe: may name the base; else the adapters do.
        adapters: opened.
        differing: names of the tensors that need it.
        options: where downloads go.

    Raises:
        PlanError: if the base is not known, cannot be opened, or is not the adapters'.

    """
    reference = _reference(recipe, adapters, differing[0])
    try:
        base = open_model(reference, options)
    except CuveeError as error:
        raise _unknown(differing[0], adapters, f"{reference} cannot be opened: {error.what}") from error
    paths = [path for each in adapters for path in (*each.modules, *each.whole)]
    names = BaseNames(base.tensors, [path.replace(".base_layer", "") for path in paths])
    for adapter in adapters:
        _check_shapes(base, names, adapter, differing)
    tuned = tuple(with_adapter(base, adapter, f"{base.name}+{adapter.name}") for adapter in adapters)
    return OnBase(base, tuned, names)


def own_name(base: Checkpoint, names: BaseNames, name: str) -> str:
    """What the base calls the tensor that adapters call `name`."""
    found = names.find(name)
    return found if found is not None and found in base.tensors else name


def held_as(own: str, model: Checkpoint) -> Source | None:
    """A model's tensor of that name, or the one that it is tied to."""
    return model.tensors.get(own) or model.tensors.get(tied_to(model.tensors, own) or "")


def _check_shapes(base: Checkpoint, names: BaseNames, adapter: Adapter, differing: Sequence[str]) -> None:
    """Raises a PlanError if a tensor that is to be merged has another shape in the adapter than in the base."""
    for name in differing:
        held, there = adapter.whole.get(name), held_as(own_name(base, names, name), base)
        if held is not None and there is not None and held.shape != there.shape:
            raise PlanError(
                f"{adapter.name} holds {name!r} whole in another shape than {base.name}, so no change can be told",
                expected=f"{list(there.shape)} as in {base.name}",
                found=f"{list(held.shape)} in {adapter.name}",
                fix="merge adapters of one base model whose vocabulary none of them made longer",
                tensor=name,
            )


def _reference(recipe: AdapterRecipe, adapters: Sequence[Adapter], name: str) -> ModelRef:
    """The base model that the recipe names, else the one that all adapters name."""
    if recipe.base is not None:
        return recipe.base
    named = {(each.config.base_model, each.config.revision) for each in adapters if each.config.base_model}
    paths = sorted({str(path) for path, _ in named})
    revisions = sorted({revision for _, revision in named if revision})
    if not paths:
        raise _unknown(name, adapters, "no adapter names its base model")
    if len(paths) > 1:
        raise _unknown(name, adapters, f"the adapters name different ones: {', '.join(paths)}")
    if len(revisions) > 1:
        raise _unknown(name, adapters, f"the adapters name revisions {', '.join(revisions)} of {paths[0]}")
    (path,) = paths
    # A path on the machine of whoever trained the adapters says nothing here.
    if not os.path.exists(os.path.expanduser(path)) and not looks_like_hub_id(path):  # noqa: PTH110, PTH111
        raise _unknown(name, adapters, f"the adapters name {path}, which is not here")
    return ModelRef(path, next(iter(revisions), None))


def _unknown(name: str, adapters: Sequence[Adapter], why: str) -> PlanError:
    """The refusal of a tensor that cannot be merged for want of the base."""
    holding = [each.name for each in adapters if name in each.whole]
    lacking = next((each.name for each in adapters if name not in each.whole), None)
    how = f"and {lacking} does not" if lacking else "and the others hold other values"
    return PlanError(
        f"{holding[0]} holds {name!r} whole, {how}: what that changes cannot be told without the base model",
        expected="the base model of the adapters",
        found=why,
        fix="add `base_model: PATH_OR_HUB_ID` to the recipe, or extract adapters without the tensor "
        "(--embed-lora, -e REGEX)",
        tensor=name,
    )
