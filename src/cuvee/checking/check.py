"""All questions asked of a checkpoint, the cheap ones first."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cuvee.checking.findings import CheckReport, Finding
from cuvee.checking.loading import generates, loads
from cuvee.checking.structure import structure
from cuvee.checking.values import values
from cuvee.errors import CheckpointError
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.views.lifted import lifted, model_folder
from cuvee.views.module_folders import with_module_folders


def check_checkpoint(
    path: Path,
    *,
    quick: bool = False,
    tokenizer: bool = True,
    prompt: str | None = None,
    converted: Path | None = None,
) -> CheckReport:
    """What is right and wrong with the checkpoint in the directory `path`.

    Args:
        path: the checkpoint.
        quick: read headers and small files only: no weights, and no transformers.
        tokenizer: whether the tokenizer's files are read, which takes a moment where they are large.
        prompt: if given, what the model shall go on with.
        converted: see `open_checkpoint`.

    Raises:
        SourceError: if there is no directory at `path`.

    """
    location = Directory(path)
    model = path / model_folder(location)
    try:
        checkpoint = with_module_folders(open_checkpoint(lifted(location), path.name, converted), converted)
        config = checkpoint.config  # parsed here, so that a damaged one is told here
    except CheckpointError as error:
        text = "; ".join(filter(None, (error.what, error.found, error.fix)))
        return CheckReport(path, (Finding("files", "problem", text),))
    findings: list[Finding] = [*structure(checkpoint, tokenizer=tokenizer)]
    if not quick:
        findings += values(checkpoint, min(os.cpu_count() or 1, 8))
        loaded = loads(model, config)
        findings = [*map(_excused, findings), loaded] if loaded.state == "ok" else [*findings, loaded]
    if prompt is not None:
        findings.append(generates(model, config, prompt))
    return CheckReport(path, tuple(findings))


def _excused(finding: Finding) -> Finding:
    """A finding of a model that loads whole: its class knows better what layers and heads it needs.

    ALBERT's layers share one set of tensors, for one.
    """
    if finding.state == "problem" and finding.check in ("layers", "head"):
        return replace(finding, state="note", text=f"{finding.text}; the model's class does not miss them")
    return finding
