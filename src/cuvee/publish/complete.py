"""All that belongs beside the weights, made from a plan: texts are composed here and written by `publish`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cuvee.errors import CheckpointError
from cuvee.methods.registry import get_method
from cuvee.options import MergeOptions
from cuvee.planning.build import Opened
from cuvee.planning.ops import Plan
from cuvee.publish.card import CardInput, model_card
from cuvee.publish.config import merged_config_text
from cuvee.publish.publish import publish
from cuvee.publish.pytorch import to_pytorch
from cuvee.publish.tokenizer import tokenizer_files
from cuvee.tensors import disk
from cuvee.tensors.dtypes import name_of


def complete(
    opened: Opened, partial: Path, title: str, options: MergeOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Writes all that belongs beside the weights: (file names, warnings)."""
    plan, recipe = opened.plan, opened.recipe
    base = list(opened.checkpoints.values())[plan.base]
    dtype = _dtype(opened)
    if plan.shards[0].name != "model.safetensors":
        disk.write_file(partial / "model.safetensors.index.json", _index(plan))
    tokenizer = tokenizer_files(opened.vocabulary, base)
    config = compose_config(opened, tokenizer.config_edits)
    card = _card(opened, title, dtype, options) if options.write_model_card else None
    published = publish(
        partial,
        base=base,
        tokenizer_from=tokenizer.home,
        texts=tokenizer.texts,
        config_text=config,
        card=card,
        recipe_text=recipe.text if options.write_model_card else None,
        copy_tokenizer=options.copy_tokenizer or opened.vocabulary.tokenizer is not None,
        trust_remote_code=options.trust_remote_code,
    )
    if not options.safe_serialization:
        to_pytorch(partial)
    names = tuple(sorted(path.name for path in partial.iterdir()))
    bare = (
        () if config is not None else (f"{base.name} has no config.json, so the merge has none: few programs load it",)
    )
    return names, (*tokenizer.warnings, *published.warnings, *bare)


def compose_config(opened: Opened, further: Mapping[tuple[str, ...], Any] = MappingProxyType({})) -> str | None:
    """The merged model's config.json, with a new tokenizer's `further` edits; None if the base has none.

    Raises:
        CheckpointError: if the base's is none that can be edited.

    """
    base = list(opened.checkpoints.values())[opened.plan.base]
    if base.config_text is None:
        return None
    edits = {tuple(key.split(".")): value for key, value in opened.plan.config_edits.items()}
    edits.update(further)
    try:
        return merged_config_text(
            base.config_text, dtype=_dtype(opened), edits=edits, vocab_size=opened.vocabulary.rows
        )
    except CheckpointError as error:
        raise error.at(f"config.json of {base.name}", checkpoint=base.name, file="config.json") from None


def _dtype(opened: Opened) -> str | None:
    """Torch's name of the dtype of the merged weights; None if they are of several."""
    plan, recipe = opened.plan, opened.recipe
    dtypes = {op.dtype for op in plan.ops if op.method is not None} or {op.dtype for op in plan.ops}
    written = recipe.out_dtype or recipe.dtype or (dtypes.pop() if len(dtypes) == 1 else None)
    return name_of(written) if written else None


def _index(plan: Plan) -> bytes:
    """model.safetensors.index.json."""
    ops = [op for op in plan.ops if "/" not in plan.shards[op.shard].name]  # folders are no part of the model's own
    weight_map = {op.name: plan.shards[op.shard].name for op in ops}
    facts = {"total_size": sum(op.nbytes for op in ops), "total_parameters": sum(op.size for op in ops)}
    table = {"metadata": facts, "weight_map": weight_map}
    return json.dumps(table, indent=2, sort_keys=True).encode() + b"\n"


def _card(opened: Opened, title: str, dtype: str | None, options: MergeOptions) -> str:
    plan = opened.plan
    base = list(opened.checkpoints.values())[plan.base]
    inputs = [
        CardInput(ref, checkpoint.identity, is_base=index == plan.base)
        for index, (ref, checkpoint) in enumerate(opened.checkpoints.items())
    ]
    return model_card(
        title,
        method=get_method(plan.method),
        inputs=inputs,
        recipe_text=opened.recipe.text,
        seed=plan.seed,
        dtype=dtype,
        architectures=base.config.get("architectures") or (),
        with_tokenizer=options.copy_tokenizer,
        version=plan.version,
    )
