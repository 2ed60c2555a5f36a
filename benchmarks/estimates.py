"""How near `cuvee plan` comes: each recipe of a folder planned and then merged, in turn, as whole processes.

    python benchmarks/estimates.py FOLDER [METHOD ...]

FOLDER holds recipes called METHOD.yml, as `benchmarks/speed.py` leaves them in its scratch folder. Memory is the
resident peak that the system reports of the merging process.
"""

from __future__ import annotations

import json
import os
import shutil
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
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "cuvee", "merge", "--quiet", str(recipe), str(out)],
                os.environ,
            )
            _, status, usage = os.wait4(child, 0)
            taken = time.perf_counter() - begin
            if status:
                sys.exit(f"{recipe} could not be merged")
            shutil.rmtree(out)
        resident = usage.ru_maxrss * 1024
        print(
            f"| {recipe.stem} | {seconds:.2f} | {taken:.2f} | {seconds / taken:.2f} "
            f"| {memory / 1e6:.0f} | {resident / 1e6:.0f} | {memory / resident:.2f} | "
            + " ".join(f"{rate / 1e9:.2f}" for rate in rates),
            flush=True,
        )


if __name__ == "__main__":
    main()
