"""What the journal costs: the same merge with and without it, in turn, in fresh processes; medians of the ratios.

    python benchmarks/speed.py --only cuvee --rounds 1             makes the inputs, once
    python benchmarks/journal.py scratch/speed/full                linear and ties, five pairs each

Without a journal the bytes are left to the kernel to write; with it, all are on the disk before the output appears. A
third side waits for the disk at the end and keeps no journal, which tells what of the difference is waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from inputs import SHAPES
from recipes import write_recipe

SIDES = ("none", "sync", "journal")
RUN = """
import json, os, resource, sys, time
from pathlib import Path
from cuvee import MergeOptions, api
from cuvee.engine.execute import execute
from cuvee.engine.fetch import fetch
from cuvee.engine.identity import identity_of
from cuvee.engine.journal import open_journal
from cuvee.progress import Silent

side, recipe, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
options = MergeOptions()
opened = api.open_recipe(recipe, options)
plan, settings = opened.plan, api.engine_settings(options)
locate = fetch(plan, opened.checkpoints.values(), Silent())
folder = home / "model"
begin = time.perf_counter()
if side == "journal":
    identity = identity_of(plan, opened.recipe.text, locate, settings)
    with open_journal(home / "journal", folder, plan, identity)[0] as journal:
        execute(plan, folder, settings, locate, journal.watching(Silent()))
else:
    folder.mkdir()
    execute(plan, folder, settings, locate, Silent())
    for shard in plan.shards if side == "sync" else ():
        descriptor = os.open(folder / shard.name, os.O_RDWR)
        os.fdatasync(descriptor)
wall, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([wall, used.ru_utime + used.ru_stime]))
"""


def once(side: str, recipe: Path, scratch: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    os.sync()  # what the last run left to be written is not this one's affair
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        command = [sys.executable, "-c", RUN, side, str(recipe), home]
        wall, cpu = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder of inputs that speed.py made")
    parser.add_argument("--methods", default="linear,ties")
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="folder for outputs")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    print("| method | side | wall, s | CPU, s | wall against none | CPU against none |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for method in options.methods.split(","):
        recipe = options.scratch / f"{method}-journal.yml"
        write_recipe(method, options.models.resolve(), SHAPES["full"], recipe)
        rounds = [{side: once(side, recipe, options.scratch) for side in SIDES} for _ in range(options.pairs)]
        for side in SIDES:
            wall, cpu = (statistics.median(each[side][i] for each in rounds) for i in (0, 1))
            ratios = [statistics.median(each[side][i] / each["none"][i] for each in rounds) for i in (0, 1)]
            print(f"| {method} | {side} | {wall:.2f} | {cpu:.2f} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
