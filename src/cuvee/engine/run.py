"""A plan run in a workplace: from the start, or from where an earlier run of the same merge stopped.

What lies beside the weights, and how the result takes its place, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cuvee.engine.execute import EngineSettings, execute
from cuvee.engine.identity import identity_of, refuse_changed_files
from cuvee.engine.journal import open_journal
from cuvee.engine.workplace import Workplace
from cuvee.planning.ops import Plan
from cuvee.progress import Progress


def run(
    plan: Plan,
    recipe_text: str,
    place: Workplace,
    locate: dict[str, Path],
    settings: EngineSettings,
    progress: Progress,
    *,
    fresh: bool,
    stage: str = "merge",
) -> tuple[Mapping[str, int], int]:
    """Writes what no earlier run has written; the tensors that one had, with bytes, and the bytes that workers took.

    Args:
        plan: what to do.
        recipe_text: what the plan was made from; a change of it can then be told by name.
        place: where the shard files and the journal go.
        locate: the local path of every file that the plan's sources name.
        settings: with which devices, threads and memory.
        progress: is told whether the run goes on or starts over, then of bytes and tensors.
        fresh: whether to start over in any case.
        stage: what `progress` is told that this is.

    Raises:
        CuveeError: whatever a source, a method or the disk refuses, or an input that changed meanwhile.

    """
    identity = identity_of(plan, recipe_text, locate, settings)
    journal, restarted = open_journal(place.journal, place.folder, plan, identity, fresh=fresh)
    with journal:
        if restarted:
            progress.event("restarted", {"reason": restarted})
        done = sum(journal.done.values())
        if done:
            progress.event("resumed", {"tensors": len(journal.done), "of": len(plan.ops), "bytes": done})
        progress.begin(stage, plan.bytes_written)
        progress.advance(done)
        workers = execute(plan, place.folder, settings, locate, journal.watching(progress), journal.done)
        progress.end()
        refuse_changed_files(identity, locate)
    return journal.done, workers
