"""A merge made complete: config, side files, card and recipe written beside the weights.

It takes finished texts and writes them; what they say and how weights are written is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cuvee.publish.side_files import choose_side_files, copy_side_files
from cuvee.tensors import disk
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.location import Location

CONFIG = "config.json"
CARD = "README.md"
RECIPE = "mergekit_config.yml"


@dataclass(frozen=True)
class Published:
    """What lies beside the weights now (names relative to the output), and what the user should know."""

    files: tuple[str, ...]
    warnings: tuple[str, ...]


def publish(
    out: Path,
    *,
    base: Checkpoint,
    tokenizer_from: Location | None = None,
    texts: Mapping[str, str | None] | None = None,
    config_text: str | None,
    card: str | None,
    recipe_text: str | None,
    copy_tokenizer: bool = True,
    trust_remote_code: bool = False,
) -> Published:
    """What was written into `out`: side files, card, recipe and, last, config.json: nothing loads before.

    Args:
        out: the directory that holds the weights.
        base: whose side files go along.
        tokenizer_from: where tokenizer files come from instead of the base.
        texts: files that are written instead of being copied; one of None is left out.
        config_text: the merged model's config.json; None writes none.
        card: README.md; None writes none.
        recipe_text: mergekit_config.yml, the recipe as the user wrote it; None writes none.
        copy_tokenizer: whether tokenizer files go along.
        trust_remote_code: whether the base's Python files go along.

    Raises:
        CheckpointError: if a side file cannot be copied; `choose_side_files` tells that beforehand.
        OutputError: if a file cannot be written.
    """
    chosen = choose_side_files(
        base.location,
        tokenizer_from=tokenizer_from,
        copy_tokenizer=copy_tokenizer,
        trust_remote_code=trust_remote_code,
    )
    texts = texts or {}
    copied = {name: home for name, home in chosen.sources.items() if name not in texts}
    written = list(copy_side_files(replace(chosen, sources=copied), out))
    for name, text in (*texts.items(), (CARD, card), (RECIPE, recipe_text), (CONFIG, config_text)):
        if text is not None:
            disk.write_file(out / name, text.encode())
            written.append(name)
    return Published(tuple(written), chosen.warnings)
