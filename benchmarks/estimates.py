"""How near `cuvee plan` comes: each recipe of a folder planned and then merged, in turn, as whole processes.

    python benchmarks/estimates.py FOLDER [METHOD ...] [--rounds 3]

FOLDER holds recipes called METHOD.yml, as `benchmarks/speed.py` leaves them in its scratch folder. Memory is the
resident peak that the merge itself reports. Of several rounds the one whose merge was quickest is printed, in which
other programs hindered least, with the least and most ratios of all. Nothing is fitted to these figures: every estimate
rests on what its own probe measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PLAN = """
import json, sys
from pathlib import Path
from cuvee import api
found = api.cost(api.open_recipe(Path(sys.argv[1])), sys.argv[2])
print(json.dumps([found.seconds, found.peak_memory]))
"""

_MERGE = """
import sys
from pathlib import Path
from cuvee import api
print(api.merge(Path(sys.argv[1]), sys.argv[2]).peak_memory)
"""


def once(recipe: Path, folder: Path) -> tuple[float, float, int, int]:
    """Seconds planned and taken, bytes planned and taken."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [str(recipe), str(Path(scratch) / "out")]
        planned = json.loads(subprocess.check_output([sys.executable, "-c", _PLAN, *command]))
        begin = time.perf_counter()
        resident = int(subprocess.check_output([sys.executable, "-c", _MERGE, *command]))
        return planned[0], time.perf_counter() - begin, planned[1], resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="folder for outputs; FOLDER if it is not given")
    options = parser.parse_args()
    recipes = [options.folder / f"{name}.yml" for name in options.methods] or sorted(options.folder.glob("*.yml"))
    print("| method | seconds, planned | taken | ratio | of all rounds | MB, planned | taken | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe in recipes:
        rounds = [once(recipe, options.scratch or options.folder) for _ in range(options.rounds)]
        ratios = sorted(planned / taken for planned, taken, *_ in rounds)
        seconds, taken, memory, resident = min(rounds, key=lambda each: each[1])
        print(
            f"| {recipe.stem} | {seconds:.2f} | {taken:.2f} | {seconds / taken:.2f} "
            f"| {ratios[0]:.2f}-{ratios[-1]:.2f} "
            f"| {memory / 1e6:.0f} | {resident / 1e6:.0f} | {memory / resident:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
