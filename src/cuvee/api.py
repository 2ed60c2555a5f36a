"""The Python door: plan and merge. Everything the command line does goes through here; nothing here draws or parses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuvee
from cuvee.checking.check import check_checkpoint
from cuvee.checking.structure import structure
from cuvee.engine.devices import NumpyBackend, backends_for
from cuvee.engine.execute import MAX_THREADS, EngineSettings, shared_out
from cuvee.engine.fetch import fetch, local_files
from cuvee.engine.journal import may_go_on
from cuvee.engine.memory import peak_memory
from cuvee.engine.run import run
from cuvee.engine.workplace import Workplace, claim, reserved_bytes, tell_lacking
from cuvee.errors import CuveeError, OutputError
from cuvee.options import MergeOptions, parse_size
from cuvee.planning.build import Opened, PlanSettings, build_plan
from cuvee.planning.cost import Cost, check_disk, estimate
from cuvee.planning.machine import Machine, other
from cuvee.planning.ops import Decision, Plan
from cuvee.progress import Progress, Silent
from cuvee.publish.complete import complete, compose_config
from cuvee.publish.pytorch import require_torch
from cuvee.publish.side_files import choose_side_files
from cuvee.publish.tokenizer import tokenizer_files
from cuvee.recipe.load import load_recipe
from cuvee.recipe.schema import Recipe
from cuvee.views.opening import open_inputs
from cuvee.views.vocabulary import with_one_vocabulary

RecipeLike = str | Path | Mapping[str, Any] | Recipe
_OUR_FILES = {"config.json", "mergekit_config.yml"}
_DEFAULTS = MergeOptions()
_SILENT = Silent()


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the finished checkpoint.
        seconds: wall time, from reading the recipe to the final rename.
        bytes_read: bytes of all input tensors that this run used; an earlier run's, where it went on, do not count.
        bytes_written: bytes of all weight files that this run wrote.
        peak_memory: largest resident size of this process so far and of its workers, in bytes (0 where the system does
            not tell).
        merged: tensors that went through a method.
        copied: tensors whose bytes were copied.
        resumed: tensors of both kinds that an earlier run had done.
        dropped: input tensors that no output tensor is made of, as the recipe or a rule wants it: (model name, tensor).
        decisions: what was done about tensors that only some models have, or that are not merged for another reason.
        files: names of all files written.
        warnings: what the user should know.

    """

    out: Path
    seconds: float
    bytes_read: int
    bytes_written: int
    peak_memory: int
    merged: int
    copied: int
    resumed: int
    dropped: tuple[tuple[str, str], ...]
    decisions: tuple[Decision, ...]
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def plan(recipe: RecipeLike, options: MergeOptions = _DEFAULTS) -> Plan:
    """The plan of a merge: every output tensor with its sources, method, parameters, file and offset.

    Reads headers, configs and tokenizers; of Hub models nothing else is downloaded.

    Args:
        recipe: a path, YAML text, a mapping or a loaded `Recipe`.
        options: see `MergeOptions`.

    Raises:
        CuveeError: if recipe and checkpoints do not fit together.

    """
    return open_recipe(recipe, options).plan


def merge(
    recipe: RecipeLike, out: str | Path, options: MergeOptions = _DEFAULTS, progress: Progress = _SILENT
) -> MergeReport:
    """Merges as `recipe` says into the directory `out`, which appears only when it is complete.

    Args:
        recipe: a path, YAML text, a mapping or a loaded `Recipe`.
        out: the directory to make.
        options: see `MergeOptions`.
        progress: receives events, from several threads.

    Raises:
        CuveeError: whatever stands in the way; `out` is then as it was before. What was done and can be gone on from
            is kept in `OUT.partial`, a note of the error says so, and the same call goes on there.

    """
    try:
        report = _merge(recipe, Path(out), options, progress)
    except BaseException as error:
        progress.event("failed", {"error": type(error).__name__, "message": str(error)})
        raise
    progress.event("finished", {"out": str(report.out), "seconds": report.seconds, "files": list(report.files)})
    return report


def _merge(recipe: RecipeLike, out: Path, options: MergeOptions, progress: Progress) -> MergeReport:
    begin = time.perf_counter()
    target = _usable_output(out, overwrite=options.overwrite)
    backends_for(options.devices)  # a device that is not there should not cost a download
    opened = open_recipe(recipe, options)
    plan = opened.plan
    _check_publishable(opened, options)
    facts = {"tensors": len(plan.ops), "bytes_read": plan.bytes_read, "bytes_written": plan.bytes_written}
    progress.event("planned", facts)
    with claim(target) as place:
        _usable_output(out, overwrite=options.overwrite)  # another run may have ended there meanwhile
        check_disk(plan, out, reserved_bytes(place))
        try:
            locate = fetch(plan, opened.checkpoints.values(), progress)
            settings = engine_settings(options)
            resumed, workers = run(plan, opened.recipe.text, place, locate, settings, progress, fresh=options.fresh)
            files, warnings = complete(opened, place.folder, target.name, options)
            warnings = (*warnings, *_checked(place.folder, opened, options), *replaced_inputs(opened, target))
            place.publish()
        except OutputError as error:
            tell_lacking(error, place, plan.bytes_written)
            raise
    seconds = time.perf_counter() - begin
    return _report(plan, out, seconds, workers, resumed, files, (*plan.warnings, *warnings))


def open_recipe(recipe: RecipeLike, options: MergeOptions = _DEFAULTS) -> Opened:
    """The recipe validated, its checkpoints' headers read, and the plan made.

    Raises:
        CuveeError: if any of it cannot be.

    """
    begin = time.thread_time()
    loaded, warnings = load_recipe(recipe, strict=options.strict, trust_remote_code=options.trust_remote_code)
    checkpoints = open_inputs(loaded, options)
    settings = PlanSettings(
        max_shard_bytes=parse_size(options.out_shard_size),
        seed=options.random_seed,
        allow_crimes=options.allow_crimes,
        version=cuvee.__version__,
    )
    vocabulary = with_one_vocabulary(loaded, checkpoints, options)
    warnings = (*warnings, *_without_effect(loaded), *vocabulary.warnings)
    plan = build_plan(loaded, vocabulary.checkpoints, settings, warnings)
    return Opened(loaded, vocabulary.checkpoints, plan, vocabulary.output, time.thread_time() - begin)


def engine_settings(options: MergeOptions) -> EngineSettings:
    """The engine's share of the options."""
    return EngineSettings(
        devices=options.devices,
        threads=options.threads,
        processes=options.processes,
        memory=parse_size(options.memory),
        allow_nonfinite=options.allow_nonfinite,
    )


def cost(
    opened: Opened,
    out: str | Path,
    options: MergeOptions = _DEFAULTS,
    *,
    machine: str | None = None,
    probe: bool = True,
) -> Cost:
    """What running a plan will take: bytes, memory, disk and time.

    Args:
        opened: the plan and its checkpoints.
        out: where it will go.
        options: how it will run.
        machine: what to assume of another machine, like `read=3GB/s,write=1GB/s,cores=64,nodes=8`.
        probe: measure this machine first, for about two seconds.

    Raises:
        CuveeError: if `machine` says nothing that can be meant.

    """
    settings = shared_out(opened.plan, engine_settings(options))
    here = Machine(cores=settings.workers)
    wanted = other(here, machine) if machine else here
    if probe and settings.devices == "cpu":
        from cuvee.engine.probe import probe as measure  # which merges do without

        here = measure(opened.plan, Path(out), settings, local_files(opened.checkpoints.values()))
    return estimate(
        opened.plan,
        Path(out),
        machine=other(here, machine) if machine else here,
        processes=settings.processes if wanted.cores == here.cores else -(-wanted.cores // MAX_THREADS),
        block_elements=NumpyBackend.block_elements,
        opening=opened.seconds,
    )


def _without_effect(recipe: Recipe) -> list[str]:
    """What was asked for and changes nothing: said, not passed over."""
    said = []
    if any(slice_.residual_weight is not None for module in recipe.modules for slice_ in module.slices):
        said.append(f"{recipe.file}: residual_weight has no effect (nor has it in mergekit)")
    return said


def replaced_inputs(opened: Opened, out: Path) -> list[str]:
    """What to know of an output that takes the place of one of its inputs; nothing if it does not.

    Nor if it is the current directory or holds it, where no merge is written.
    """
    target = Path(os.path.realpath(out))
    if target in (here := Path.cwd(), *here.parents):
        return []
    files = local_files(opened.checkpoints.values()).values()
    if not any(Path(os.path.realpath(place)).is_relative_to(target) for file in files for place in (file, file.parent)):
        return []
    return [f"{out} is an input of this recipe, and the merge takes its place: the same command then gives another"]


@contextmanager
def going_on(out: Path, *, overwrite: bool) -> Iterator[Workplace]:
    """A workplace where runs go on from what earlier ones left; when the body is done its folder replaces `out`."""
    target = _usable_output(out, overwrite=overwrite)
    with claim(target) as place:
        _usable_output(out, overwrite=overwrite)  # another run may have ended there meanwhile
        try:
            yield place
        except CuveeError as error:
            if not may_go_on(error):
                place.forget()
            raise
        place.publish()


def _usable_output(out: Path, *, overwrite: bool) -> Path:
    """`out` as an absolute path, links followed, if a merge may put its result there."""
    try:
        path = out.expanduser().resolve()
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # no such user, a name that cannot be, links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot use the output {out}: {reason}", path=str(out)) from error
    if exists and not path.is_dir():
        raise OutputError(f"the output {out} is a file", fix="choose another output", path=str(out))
    if names and not overwrite:
        fix = "choose another output, or give --overwrite to replace it"
        raise OutputError(f"the output {out} exists already", fix=fix, path=str(out))
    if names and not any(name.endswith((".safetensors", ".bin")) or name in _OUR_FILES for name in names):
        raise OutputError(
            f"the output {out} is not a checkpoint, so it is not replaced", fix="choose another output", path=str(out)
        )
    if path == path.parent or path in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"the output {out} is the directory you are in, or holds it", fix="choose another output", path=str(out)
        )
    parent = next(parent for parent in path.parents if parent.exists())
    if not os.access(parent, os.W_OK):
        fix = "choose an output directory that you may write to"
        raise OutputError(f"cannot write into {parent}", fix=fix, path=str(out))
    return path


def _check_publishable(opened: Opened, options: MergeOptions) -> None:
    """Raises now what would otherwise stop the merge only after its weights are written."""
    base = list(opened.checkpoints.values())[opened.plan.base]
    tokenizer = opened.vocabulary.tokenizer
    choose_side_files(
        base.location,
        tokenizer_from=tokenizer.start.location if tokenizer else None,
        copy_tokenizer=options.copy_tokenizer,
        trust_remote_code=options.trust_remote_code,
    )
    compose_config(opened, tokenizer_files(opened.vocabulary, base).config_edits)
    if not options.safe_serialization:
        require_torch()


def _checked(partial: Path, opened: Opened, options: MergeOptions) -> list[str]:
    """What the cheap part of a check finds wrong with a finished merge, before it gets its name.

    Headers that cannot be read back end the merge. The rest is said, and whether it is so in the base already.
    """
    if not options.safe_serialization:
        return []
    report = check_checkpoint(partial, quick=True, tokenizer=False)
    for finding in report.problems:
        if finding.check == "files":
            fix = "check the disk, then run the same command again with --fresh"
            raise OutputError(f"the merged weights cannot be read back: {finding.text}", fix=fix, path=str(partial))
    base = list(opened.checkpoints.values())[opened.plan.base]
    inherited = {finding.text for finding in structure(base, tokenizer=False)} if report.problems else set()
    whose = {True: "the base already has", False: "the merged checkpoint"}
    return [f"{whose[each.text in inherited]}: {each.text}" for each in report.problems]


def _report(
    plan: Plan,
    out: Path,
    seconds: float,
    workers: int,
    resumed: Mapping[str, int],
    files: tuple[str, ...],
    warnings: tuple[str, ...],
) -> MergeReport:
    return MergeReport(
        out=out,
        seconds=seconds,
        bytes_read=sum(op.bytes_read for op in plan.ops if op.name not in resumed),
        bytes_written=plan.bytes_written - sum(resumed.values()),
        peak_memory=peak_memory(workers),
        merged=len(plan.ops) - plan.copied,
        copied=plan.copied,
        resumed=len(resumed),
        dropped=tuple((plan.models[index].name, name) for index, name in plan.dropped),
        decisions=plan.decisions,
        files=files,
        warnings=warnings,
    )
