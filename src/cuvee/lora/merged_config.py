"""The settings of an adapter that others were merged into, from theirs. What the tensors hold is not known here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from cuvee.adapters.adapter import Adapter
from cuvee.layout.ties import is_head
from cuvee.lora.peft_config import AdapterPlan
from cuvee.lora.recipe import AdapterRecipe
from cuvee.lora.updates import Update
from cuvee.lora.whole import Whole


def merged_config(
    recipe: AdapterRecipe,
    adapters: Sequence[Adapter],
    updates: Mapping[str, Update],
    ranks: Mapping[str, int],
    wholes: Sequence[Whole],
    *,
    replaced: bool,
    differing: Collection[str],
) -> AdapterPlan:
    """The merged adapter's settings; modules are named in full where the adapters' own lists do not tell enough.

    With `replaced`, modules that an adapter lists are held whole. A head that is merged as a change is no longer tied
    by force: a method that draws at random draws for embedding and head apart.
    """
    raws = [adapter.config.raw for adapter in adapters]
    lists = [raw.get("target_modules") for raw in raws]
    plain = all(isinstance(each, list) for each in lists) and not any(raw.get("layers_to_transform") for raw in raws)
    modules = [name for name, update in updates.items() if not update.parameter]
    biases = any(whole.name.endswith(".bias") and whole.name[:-5] in modules for whole in wholes)
    base = recipe.base if recipe.base is not None and not recipe.base.adapters else None
    return AdapterPlan(
        ranks=ranks,
        whole=tuple(dict.fromkeys(_saved(raws))) if wholes else (),
        modules=(),
        base=base.path if base else adapters[0].config.base_model,
        revision=base.revision if base else adapters[0].config.revision,
        biases=biases or any(raw.get("bias") not in (None, "none") for raw in raws),
        fan_in_fan_out=any(adapter.config.fan_in_fan_out for adapter in adapters),
        tied=any(raw.get("ensure_weight_tying") for raw in raws) and not any(is_head(name) for name in differing),
        task=next((raw["task_type"] for raw in raws if raw.get("task_type")), None),
        targets=tuple(dict.fromkeys(name for each in lists for name in each))  # type: ignore[union-attr]
        if plain and not replaced
        else tuple(modules),
        parameters=tuple(name for name, update in updates.items() if update.parameter),
    )


def _saved(raws: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for raw in raws:
        names = raw.get("modules_to_save")
        if isinstance(names, list):
            yield from map(str, names)
