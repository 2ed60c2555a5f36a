"""How near `cuvee plan` comes: each recipe of a folder planned and then merged, in turn, as whole processes.

    python benchmarks/estimates.py FOLDER [METHOD ...]

FOLDER holds recipes called METHOD.yml, as `benchmarks/speed.py` leaves them in its scratch folder. Memory is the
resident peak that the merge itself reports.
"""

from __future__ import annotations

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
machine = found.machine
print(json.dumps([found.seconds, found.peak_memory, machine.read, machine.write, machine.copy]))
"""

_MERGE = """
import sys
from pathlib import Path
from cuvee import api
print(api.merge(Path(sys.argv[1]), sys.argv[2]).peak_memory)
"""


def main() -> None:
    folder = Path(sys.argv[1])
    recipes = [folder / f"{name}.yml" for name in sys.argv[2:]] or sorted(folder.glob("*.yml"))
    print("| method | seconds, planned | taken | ratio | MB, planned | taken | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe in recipes:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "out"
            planned = subprocess.run(
                [sys.executable, "-c", _PLAN, str(recipe), str(out)], check=True, capture_output=True, text=True
            )
            seconds, memory, *rates = json.loads(planned.stdout)
            begin = time.perf_counter()
            merged = subprocess.run(
                [sys.executable, "-c", _MERGE, str(recipe), str(out)], check=True, capture_output=True, text=True
            )
            taken = time.perf_counter() - begin
        resident = int(merged.stdout)
        print(
            f"| {recipe.stem} | {seconds:.2f} | {taken:.2f} | {seconds / taken:.2f} "
            f"| {memory / 1e6:.0f} | {resident / 1e6:.0f} | {memory / resident:.2f} | "
            + " ".join(f"{rate / 1e9:.2f}" for rate in rates),
            flush=True,
        )


if __name__ == "__main__":
    main()
