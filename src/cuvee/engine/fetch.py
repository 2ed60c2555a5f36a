"""Brings the files that a plan reads to this machine, if they are not here yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cuvee.planning.ops import Plan
from cuvee.progress import Progress
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.sources import stored_pieces


def fetch(plan: Plan, checkpoints: Iterable[Checkpoint], progress: Progress) -> dict[str, Path]:
    """Local paths of every file the plan reads, downloaded where they are not here yet."""
    needed = {piece.file for op in plan.ops for source in op.sources for piece in stored_pieces(source)}
    located: dict[str, Path] = {}
    remote: list[tuple[Checkpoint, str, str]] = []
    for checkpoint in checkpoints:
        for uri, name in checkpoint.weight_files.items():
            if uri not in needed:
                continue
            if checkpoint.identity.startswith("hf://") and name:
                remote.append((checkpoint, uri, name))
            else:
                located[uri] = checkpoint.location.fetch(name) if name else Path(uri)
    if remote:
        progress.begin("download", sum(checkpoint.files[name] for checkpoint, _, name in remote))
        for checkpoint, uri, name in remote:
            located[uri] = checkpoint.location.fetch(name, progress.advance)
            progress.finished(name)
        progress.end()
    return located


def local_files(checkpoints: Iterable[Checkpoint]) -> dict[str, Path]:
    """Local paths of the weight files that need no download."""
    return {
        uri: checkpoint.location.fetch(name) if name else Path(uri)
        for checkpoint in checkpoints
        if not checkpoint.identity.startswith("hf://")
        for uri, name in checkpoint.weight_files.items()
    }
