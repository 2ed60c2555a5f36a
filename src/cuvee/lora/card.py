"""README.md of an adapter that was extracted: what it holds, how closely, and how to use it. Pure text from facts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import yaml

from cuvee.adapters.adapter import Adapter
from cuvee.lora.curve import Point
from cuvee.lora.extraction import Extracted, Held
from cuvee.lora.merging import AdapterMerge
from cuvee.lora.options import ExtractOptions
from cuvee.lora.recipe import AdapterRecipe
from cuvee.publish.card import auto_class
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import looks_like_hub_id

_SHOWN = 400  # rows of the table of modules


def extraction_card(
    title: str,
    found: Extracted,
    curve: Sequence[Point],
    checkpoints: tuple[Checkpoint, Checkpoint],
    options: ExtractOptions,
    picture: str | None,
    version: str,
) -> str:
    """The README.md of an extracted adapter.

    Args:
        title: what the adapter is called.
        found: what it holds.
        curve: error against rank.
        checkpoints: the fine-tune and its base.
        options: how it was extracted.
        picture: the file of the picture of `curve`, if there is one.
        version: of Cuvee.

    """
    model, base = (public_name(checkpoint.identity) for checkpoint in checkpoints)
    parts = [
        front_matter([base]),
        f"# {title}",
        f"What `{model}` learned over `{base}`, as an adapter for PEFT, extracted with Cuvee {version}.",
        "## How close",
        _closeness(found, options),
    ]
    if curve:
        parts += [_curve_table(curve), f"![Relative error against rank]({picture})" if picture else ""]
    parts += [
        "## Use",
        usage(title, base, revision_of(checkpoints[1].identity), _new_rows(found), _architectures(checkpoints[0])),
    ]
    if found.held:
        parts += ["## Tensors", _tensor_table(found.held)]
    return "\n\n".join(part for part in parts if part) + "\n"


def merge_card(
    title: str, recipe: AdapterRecipe, adapters: Sequence[Adapter], merge: AdapterMerge, version: str
) -> str:
    """The README.md of adapters merged into one."""
    base = _public_base(merge.config.base) if merge.config.base else "the adapters' base model"
    ranks = sorted(merge.config.ranks.values()) or [0]
    how = "the weighted sum of their updates" if recipe.is_sum else f"`{recipe.method}` in the space `{recipe.space}`"
    lines = [f"- `{public_name(adapter.identity)}`" for adapter in adapters]
    parts = [
        front_matter([base] if merge.config.base else []),
        f"# {title}",
        f"{len(adapters)} LoRA adapters merged into one with Cuvee {version}: {how}.",
        "\n".join(lines),
        f"{len(merge.config.ranks)} modules, rank {ranks[0]} to {ranks[-1]}.",
        *_whole_tensors(merge),
        f"## Recipe\n\n```yaml\n{recipe.text.rstrip()}\n```",
        "## Use",
        usage(title, base, merge.config.revision, None, tuple(merge.config.architectures)),
    ]
    return "\n\n".join(parts) + "\n"


def _whole_tensors(merge: AdapterMerge) -> list[str]:
    """What became of tensors that adapters hold whole, if there are any."""
    if not merge.whole:
        return []
    base, changed = merge.base or ("", 0)
    said = f"{merge.whole} tensors are held whole"
    parts = [f"{merge.whole - changed} as they are in all adapters"] if merge.whole > changed else []
    parts += [f"{changed} merged as changes from `{public_name(base)}`"] if changed else []
    return [f"{said}: {', '.join(parts)}."]


def _public_base(name: str) -> str:
    """A base as adapters name it, as strangers may know it: a Hub id, or the last part of a path."""
    return name if looks_like_hub_id(name) else public_name(name)


def front_matter(bases: Sequence[str]) -> str:
    """The YAML head that the Hub reads."""
    facts = {"base_model": list(bases), "library_name": "peft", "tags": ["lora", "cuvee"]}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def public_name(identity: str) -> str:
    """A checkpoint as strangers may know it: its Hub id, or the last part of its path."""
    repository = identity.removeprefix("hf://").partition("@")[0]
    return repository if identity.startswith("hf://") else re.split(r"[/\\]", identity.rstrip("/\\"))[-1]


def revision_of(identity: str) -> str | None:
    """The commit of a checkpoint on the Hub."""
    return identity.rpartition("@")[2] if identity.startswith("hf://") and "@" in identity else None


def _architectures(checkpoint: Checkpoint) -> Sequence[str]:
    return checkpoint.config.get("architectures") or ()


def usage(title: str, base: str, revision: str | None, rows: int | None, architectures: Sequence[str] = ()) -> str:
    """How to put the adapter on its base; with `rows` the base's vocabulary grows first.

    Adapters alone do not tell their base's architectures; most bases are language models. `AutoModel` would leave heads
    off that an adapter may change, so other models are loaded by their own class.
    """
    auto = auto_class(architectures) if architectures else "AutoModelForCausalLM"
    auto = architectures[0] if auto == "AutoModel" else auto
    at = f', revision="{revision}"' if revision else ""
    lines = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("{base}"{at})',
    ]
    if rows is not None:
        lines.append(f"model.resize_token_embeddings({rows})  # the adapter brings tokens of its own")
    lines += [f'model = PeftModel.from_pretrained(model, "{title}")', "```"]
    return "\n".join(lines)


def _closeness(found: Extracted, options: ExtractOptions) -> str:
    decomposed = found.decomposed
    whole = sum(each.whole for each in found.held)
    left = sum(not each.whole and not each.rank for each in found.held)
    inner = math.fsum(each.missing for each in decomposed) / (math.fsum(each.total for each in decomposed) or 1.0)
    ranks = sorted(each.rank for each in decomposed) or [0]
    lines = [
        (
            f"- Relative error of the whole change: **{found.error:.4g}** "
            f"(Frobenius norm of what is missing over that of what changed; factors as rounded to {options.dtype})."
        ),
        (
            f"- {len(decomposed)} matrices as factors of rank {ranks[0]} to {ranks[-1]}, "
            f"relative error {math.sqrt(inner):.4g} over these."
        ),
        f"- {whole} tensors saved whole, with no error.",
        f"- {found.unchanged} tensors did not change and are not in the adapter.",
        f"- Decomposed {'in full' if options.exact else 'by randomised subspace iteration'}.",
    ]
    if left:
        lines.append(f"- {left} tensors changed and were left out; their change counts as missing.")
    return "\n".join(lines)


def _curve_table(curve: Sequence[Point]) -> str:
    rows = [f"| {point.rank} | {point.error:.4g} | {point.parameters:,} |" for point in curve]
    return "\n".join(["| rank at most | relative error | parameters of factors |", "|---|---|---|", *rows])


def _tensor_table(held: Sequence[Held]) -> str:
    rows = []
    for each in held[:_SHOWN]:
        how = f"rank {each.rank}" if each.rank else "whole" if each.whole else "left out"
        error = math.sqrt(each.missing / each.total) if each.total > 0 else 0.0
        rows.append(f"| {each.name} | {'×'.join(map(str, each.shape))} | {how} | {error:.4g} |")
    more = [f"\nand {len(held) - _SHOWN} more."] if len(held) > _SHOWN else []
    return "\n".join(["| tensor | shape | held | relative error |", "|---|---|---|---|", *rows, *more])


def _new_rows(found: Extracted) -> int | None:
    """How many rows the vocabulary has now, if the adapter brings embeddings that the base cannot be compared with."""
    rows = [each.shape[0] for each in found.held if math.isnan(each.total) and len(each.shape) == 2]
    return max(rows, default=None)
