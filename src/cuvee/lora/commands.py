"""Adapters made from what the user names: inputs opened, files brought here, everything beside the weights written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuvee.adapters.adapter import Adapter, open_adapter
from cuvee.engine.execute import EngineSettings
from cuvee.engine.fetch import fetch
from cuvee.engine.workplace import Workplace
from cuvee.errors import CheckpointError, PlanError
from cuvee.lora.base import put_on_base
from cuvee.lora.card import extraction_card, merge_card
from cuvee.lora.curve import error_curve, error_picture
from cuvee.lora.extraction import Extracted, extract, whole_tensors
from cuvee.lora.files import CONFIG, MEASURED, WEIGHTS, Run, read_small
from cuvee.lora.merging import AdapterMerge, check_kind, plan_adapter_merge
from cuvee.lora.options import ExtractOptions
from cuvee.lora.pairs import pair_up
from cuvee.lora.peft_config import adapter_config
from cuvee.lora.recipe import AdapterRecipe, read_adapter_recipe
from cuvee.lora.whole import Whole, comparisons, differing, held_whole
from cuvee.numerics.row_blocks import Array
from cuvee.options import MergeOptions
from cuvee.planning.build import fingerprint
from cuvee.planning.ops import PlannedModel
from cuvee.progress import Progress
from cuvee.publish.side_files import choose_tokenizer_files, copy_side_files
from cuvee.recipe.load import load_recipe
from cuvee.tensors import disk
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef
from cuvee.views.opener import conversions
from cuvee.views.opening import open_inputs

PICTURE = "error_against_rank.svg"
CARD, RECIPE = "README.md", "recipe.yml"


def extract_adapter(
    model: str,
    base_model: str,
    place: Workplace,
    extraction: ExtractOptions,
    options: MergeOptions,
    settings: EngineSettings,
    progress: Progress,
    version: str,
) -> Extracted:
    """Writes the adapter that turns `base_model` into `model`, with config, card and tokenizer, into `place`'s folder.

    Args:
        model: the fine-tune, as recipes name models.
        base_model: what it was trained from.
        place: where to work; what an earlier run has done there is not done again.
        extraction: what to extract.
        options: how to run.
        settings: the engine's share of those.
        progress: is told of bytes and tensors.
        version: of Cuvee.

    Raises:
        CuveeError: if a model cannot be opened, they do not belong together, or nothing changed.

    """
    tuned, base = _open(model, base_model, options)
    pairs = pair_up(tuned, base, extraction)
    run = Run(place, options.fresh, _planned((tuned, base)), options.random_seed, settings, {}, progress, version)
    located = fetch(run.plan("lora extract", whole_tensors(pairs), (WEIGHTS,)), (tuned, base), progress)
    found = extract(pairs, (tuned, base), extraction, replace(run, locate=located))
    out, title = place.folder, place.final.name
    if options.write_model_card:
        curve = error_curve(found)
        if curve:
            disk.write_file(out / PICTURE, error_picture(curve).encode())
        card = extraction_card(title, found, curve, (tuned, base), extraction, PICTURE if curve else None, version)
        disk.write_file(out / CARD, card.encode())
    if options.copy_tokenizer:
        copy_side_files(choose_tokenizer_files(tuned.location), out)
    return found


def merge_adapters(
    source: str | Path | Mapping[str, Any],
    place: Workplace,
    options: MergeOptions,
    settings: EngineSettings,
    progress: Progress,
    version: str,
) -> AdapterMerge:
    """Writes the adapter that a recipe for adapters describes, with config and card, into `place`'s folder.

    Args:
        source: the recipe.
        place: where to work; what an earlier run has done there is not done again.
        options: how to run.
        settings: the engine's share of those.
        progress: is told of bytes and tensors.
        version: of Cuvee.

    Raises:
        CuveeError: if the recipe is wrong, or the adapters cannot be opened or do not fit together.

    """
    recipe = read_adapter_recipe(source)
    cache = Path(options.transformers_cache).expanduser() if options.transformers_cache else None
    adapters = [open_adapter(open_location(ref, cache), str(ref), conversions()) for ref in recipe.adapters]
    for adapter in adapters:
        check_kind(adapter)
    files = [_as_checkpoint(adapter) for adapter in adapters]
    run = Run(place, options.fresh, _planned(files), options.random_seed, settings, {}, progress, version, recipe.text)
    merge, base = _plan_merge(recipe, adapters, run, files, options)
    files += [base] if base else []
    run = replace(run, models=_planned(files))
    located = fetch(run.plan(recipe.method, merge.ops, (WEIGHTS,)), files, progress)
    try:
        out = replace(run, locate=located).execute("merge", recipe.method, merge.ops, (WEIGHTS,))
    except CheckpointError as error:
        if error.fix is None and error.facts.get("tensor") in {op.name for op in merge.ops if op.derivation is None}:
            error.fix = "extract adapters without it (--embed-lora, -e REGEX), or merge the models"
        raise
    merge = replace(merge, workers=max(run.workers))
    title = place.final.name
    disk.write_file(out / CONFIG, adapter_config(merge.config).encode())
    if options.write_model_card:
        disk.write_file(out / CARD, merge_card(title, recipe, adapters, merge, version).encode())
        disk.write_file(out / RECIPE, recipe.text.encode())
    if options.copy_tokenizer:
        copy_side_files(choose_tokenizer_files(adapters[0].location), out)
    return merge


def _plan_merge(
    recipe: AdapterRecipe, adapters: Sequence[Adapter], run: Run, files: Sequence[Checkpoint], options: MergeOptions
) -> tuple[AdapterMerge, Checkpoint | None]:
    """What is to be done, and the base if that is needed: only where tensors held whole turn out to differ."""
    wholes = held_whole(adapters)
    different = differing(wholes, _compared(wholes, run, files))
    on_base = put_on_base(recipe, adapters, different, options) if different else None
    return plan_adapter_merge(recipe, adapters, wholes, on_base, different), on_base.base if on_base else None


def _planned(files: Sequence[Checkpoint]) -> tuple[PlannedModel, ...]:
    return tuple(PlannedModel(c.name, c.identity, fingerprint(c)) for c in files)


def _compared(wholes: Sequence[Whole], run: Run, files: Sequence[Checkpoint]) -> dict[str, Array]:
    """How far the tensors lie apart that all adapters hold whole."""
    ops = comparisons(wholes)
    if not ops:
        return {}
    located = fetch(run.plan("lora merge", ops, (MEASURED,)), files, run.progress)
    settings = replace(run.settings, allow_nonfinite=True)
    folder = replace(run, locate=located, settings=settings).execute(
        "compare", "lora merge", ops, (MEASURED,), before="whole"
    )
    return read_small(folder / MEASURED)


def _as_checkpoint(adapter: Adapter) -> Checkpoint:
    """An adapter's files, for what only cares for files."""
    relative, uri = adapter.weight_file
    tensors = {str(number): stored for number, stored in enumerate(adapter.tensors)}
    return Checkpoint(adapter.name, adapter.location, tensors, adapter.files, {uri: relative}, {}, None)


def _open(model: str, base_model: str, options: MergeOptions) -> tuple[Checkpoint, Checkpoint]:
    """The fine-tune and its base, as a merge of the two would see them."""
    if ModelRef.parse(model) == ModelRef.parse(base_model):
        raise _same(model)
    recipe: Mapping[str, object] = {
        "merge_method": "task_arithmetic",
        "base_model": base_model,
        "models": [{"model": model, "parameters": {"weight": 1.0}}],
    }
    loaded, _ = load_recipe(recipe)
    opened = list(open_inputs(loaded, options).values())
    if len(opened) != 2 or opened[0].identity == opened[1].identity:
        raise _same(opened[0].identity)
    return opened[0], opened[1]


def _same(name: str) -> PlanError:
    return PlanError(
        "the fine-tune and its base are the same checkpoint",
        found=name,
        fix="--model names the fine-tune, --base-model what it was trained from",
    )
