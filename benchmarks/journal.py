"""What the journal costs: the same merge with and without it, in turn, in fresh processes.

    python benchmarks/speed.py --only cuvee --rounds 1             makes the inputs, once
    python benchmarks/journal.py scratch/speed/full                linear and ties, five pairs each

    python benchmarks/journal.py scratch/speed/full --methods linear --stacked 10

Without a journal the bytes are left to the kernel to write; with it, all are on the disk before the output appears.
`sync` waits for the disk at the end and keeps no journal; `unsynced` keeps one and leaves the disk alone: what the
journal costs by itself. What a short merge writes the kernel keeps in memory, so that the first side has then
written nothing at all; `--stacked 10` merges all layers ten times over, into 7 GB, which it does not keep. Wall time is
told as the median of the ratios, which says little on a busy machine; CPU seconds of all processes, and seconds of
waiting after the last block, as the least of all rounds.
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

SIDES = ("none", "unsynced", "sync", "journal")
RUN = """
import json, os, resource, sys, time
from pathlib import Path
from cuvee import MergeOptions, api
from cuvee.engine.execute import execute
from cuvee.engine.fetch import fetch
from cuvee.engine.identity import identity_of
from cuvee.engine.journal import open_journal
from cuvee.progress import Silent
from cuvee.tensors import disk

side, recipe, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
options = MergeOptions()
opened = api.open_recipe(recipe, options)
plan, settings = opened.plan, api.engine_settings(options)
locate = fetch(plan, opened.checkpoints.values(), Silent())
folder = home / "model"
begin = time.perf_counter()
if side == "unsynced":
    disk.sync = disk.start_writing = disk.sync_directory = lambda *_: None
if side in ("journal", "unsynced"):
    identity = identity_of(plan, opened.recipe.text, locate, settings)
    with open_journal(home / "journal", folder, plan, identity)[0] as journal:
        execute(plan, folder, settings, locate, journal.watching(Silent()))
        last = time.perf_counter()
else:
    folder.mkdir()
    execute(plan, folder, settings, locate, Silent())
    last = time.perf_counter()
    for shard in plan.shards if side == "sync" else ():
        descriptor = os.open(folder / shard.name, os.O_RDWR)
        os.fdatasync(descriptor)
end = time.perf_counter()
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([end - begin, sum(each.ru_utime + each.ru_stime for each in used), end - last]))
"""


def stack(file: Path, times: int, layers: int) -> None:
    """Turns a recipe of models into one of slices, each of all layers."""
    recipe = json.loads(file.read_text())
    sources = [{**model, "layer_range": [0, layers]} for model in recipe.pop("models")]
    if (base := recipe.get("base_model")) is not None:
        sources.insert(0, {"model": base, "layer_range": [0, layers]})
    file.write_text(json.dumps({**recipe, "slices": [{"sources": sources}] * times}))


def once(side: str, recipe: Path, scratch: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds of one run, and those after its last block."""
    os.sync()  # what the last run left to be written is not this one's affair
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        command = [sys.executable, "-c", RUN, side, str(recipe), home]
        wall, cpu, waited = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return wall, cpu, waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder of inputs that speed.py made")
    parser.add_argument("--methods", default="linear,ties")
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="folder for outputs")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stacked", type=int, default=1, help="how many times over the layers are merged")
    options = parser.parse_args()
    print("| method | side | wall against none | CPU, s | CPU against none | waited at the end, s |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for method in options.methods.split(","):
        recipe = options.scratch / f"{method}-journal.yml"
        write_recipe(method, options.models.resolve(), SHAPES["full"], recipe)
        if options.stacked > 1:
            stack(recipe, options.stacked, SHAPES["full"].layers)
        rounds = [{side: once(side, recipe, options.scratch) for side in SIDES} for _ in range(options.pairs)]
        least = min(each["none"][1] for each in rounds)
        for side in SIDES:
            wall = statistics.median(each[side][0] / each["none"][0] for each in rounds)
            cpu, waited = (min(each[side][i] for each in rounds) for i in (1, 2))
            print(f"| {method} | {side} | {wall:.3f} | {cpu:.2f} | {cpu / least:.3f} | {waited:.3f} |", flush=True)


if __name__ == "__main__":
    main()
