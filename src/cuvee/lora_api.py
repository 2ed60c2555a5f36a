"""The Python door to adapters: extraction of one, merging of several. Nothing here draws or parses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuvee
from cuvee.api import engine_settings, going_on
from cuvee.engine.memory import peak_memory
from cuvee.lora.commands import extract_adapter, merge_adapters
from cuvee.lora.extraction import Extracted
from cuvee.lora.files import WEIGHTS
from cuvee.lora.options import ExtractOptions
from cuvee.options import MergeOptions
from cuvee.progress import Progress, Silent

_DEFAULTS = MergeOptions()
_EXTRACTION = ExtractOptions()
_SILENT = Silent()


@dataclass(frozen=True)
class LoraReport:
    """What an extraction did.

    Attributes:
        out: the finished adapter.
        seconds: wall time.
        extracted: how every changed tensor is held, and how closely.
        bytes_written: bytes of the adapter's weights.
        peak_memory: as in `MergeReport`.

    """

    out: Path
    seconds: float
    extracted: Extracted
    bytes_written: int
    peak_memory: int


def extract_lora(
    model: str,
    base_model: str,
    out: str | Path,
    extraction: ExtractOptions = _EXTRACTION,
    options: MergeOptions = _DEFAULTS,
    progress: Progress = _SILENT,
) -> LoraReport:
    """Writes what `model` learned over `base_model` as a PEFT adapter into the directory `out`.

    Args:
        model: the fine-tune: a path or Hub id, as in recipes.
        base_model: what it was trained from.
        out: the directory to make; it appears only when it is complete.
        extraction: see `ExtractOptions`.
        options: see `MergeOptions`.
        progress: receives events, from several threads.

    Raises:
        CuveeError: whatever stands in the way; `out` is then as it was before. What was done and can be gone on from
            is kept in `OUT.partial`, and the same call goes on there.

    """
    begin = time.perf_counter()
    settings = engine_settings(options)
    with going_on(Path(out), overwrite=options.overwrite) as place:
        found = extract_adapter(model, base_model, place, extraction, options, settings, progress, cuvee.__version__)
        written = (place.folder / WEIGHTS).stat().st_size
    return LoraReport(Path(out), time.perf_counter() - begin, found, written, peak_memory(found.workers))


@dataclass(frozen=True)
class LoraMergeReport:
    """What a merge of adapters did.

    Attributes:
        out: the finished adapter.
        seconds: wall time.
        ranks: module path -> rank of its update.
        whole: how many tensors are held whole.
        bytes_written: bytes of the adapter's weights.
        peak_memory: as in `MergeReport`.
        warnings: what the user should know.

    """

    out: Path
    seconds: float
    ranks: Mapping[str, int]
    whole: int
    bytes_written: int
    peak_memory: int
    warnings: tuple[str, ...]


def merge_lora(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path,
    options: MergeOptions = _DEFAULTS,
    progress: Progress = _SILENT,
) -> LoraMergeReport:
    """Merges adapters into one adapter, as `recipe` says, into the directory `out`.

    Args:
        recipe: a path, YAML text or a mapping.
        out: the directory to make; it appears only when it is complete.
        options: see `MergeOptions`.
        progress: receives events, from several threads.

    Raises:
        CuveeError: whatever stands in the way; `out` is then as it was before. What was done and can be gone on from
            is kept in `OUT.partial`, and the same call goes on there.

    """
    begin = time.perf_counter()
    with going_on(Path(out), overwrite=options.overwrite) as place:
        merge = merge_adapters(recipe, place, options, engine_settings(options), progress, cuvee.__version__)
        written = (place.folder / WEIGHTS).stat().st_size
    return LoraMergeReport(
        out=Path(out),
        seconds=time.perf_counter() - begin,
        ranks=merge.config.ranks,
        whole=merge.whole,
        bytes_written=written,
        peak_memory=peak_memory(merge.workers),
        warnings=merge.warnings,
    )
