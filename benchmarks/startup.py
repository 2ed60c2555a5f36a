"""How long Cuvee takes before any weight moves: help, the list of methods, a recipe refused, and what is imported.

    python benchmarks/startup.py
    python benchmarks/startup.py --mergekit ENV     also times `mergekit-yaml --help`

Every figure is a whole process, from start to exit. The import tables are for people: they name the modules
whose own code takes longest to run when `cuvee --help` or a merge starts, and any that has no place there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from measure import measure

FOREIGN = ("torch", "transformers", "pandas", "scipy", "peft", "ray", "gradio", "matplotlib")
"""Packages that no command may import before it has work for them."""
REFUSED = """\
merge_method: dare-ties
base_model: ./no-such-base
models:
  - model: ./no-such-model
    parameters: {weight: 1.0, density: 0.5}
"""
OK, USER_ERROR = 0, 2


def time_command(name: str, command: Sequence[str], expected_exit: int, rounds: int, folder: Path) -> bool:
    """Whether the command ended as it should; its median, fastest and slowest time are printed."""
    runs = [measure(command, folder / "log.txt", limit_s=120) for _ in range(rounds + 1)][1:]
    walls = [run.wall_s for run in runs]
    peak_mb = max(run.peak_mb for run in runs)
    print(f"{name:<24}{median(walls):>8.3f}{min(walls):>9.3f}{max(walls):>9.3f}{peak_mb:>9.0f}", flush=True)
    wrong = [run for run in runs if run.exit_code != expected_exit]
    if wrong:
        print(f"  exit code {wrong[0].exit_code} where {expected_exit} was expected:\n{wrong[0].output}")
    return not wrong


def imported(python: str, arguments: Sequence[str]) -> list[tuple[str, int]]:
    """(module, microseconds spent in its own code) for all that `cuvee` with these arguments imports."""
    command = [python, "-X", "importtime", "-m", "cuvee", *arguments]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    found = []
    for line in lines:
        own, _, rest = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and own.strip().isdigit():
            found.append((rest.partition("|")[2].strip(), int(own)))
    return found


def print_imports(title: str, modules: Sequence[tuple[str, int]], top: int) -> bool:
    """Whether every imported module belongs there; the slowest packages and modules are printed."""
    packages: dict[str, int] = {}
    for module, own in modules:
        package = module.partition(".")[0]
        packages[package] = packages.get(package, 0) + own
    total_ms = sum(packages.values()) / 1e3
    print(f"\n{title} imports {len(modules)} modules in {total_ms:.0f} ms (slower than usual: being watched)")
    print("  packages:")
    for package, own in sorted(packages.items(), key=lambda item: -item[1])[:top]:
        print(f"    {own / 1e3:8.1f} ms  {package}")
    print("  modules, without what they import:")
    for module, own in sorted(modules, key=lambda item: -item[1])[:top]:
        print(f"    {own / 1e3:8.1f} ms  {module}")
    foreign = sorted(packages.keys() & set(FOREIGN))
    if foreign:
        print(f"  out of place: {', '.join(foreign)}")
    return not foreign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter whose Cuvee runs (default: this one)")
    parser.add_argument("--mergekit", type=Path, metavar="ENV", help="virtual environment that holds mergekit")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each command, after one that is not")
    parser.add_argument("--top", type=int, default=12, help="lines of the import tables")
    options = parser.parse_args()
    cuvee = [options.python, "-m", "cuvee"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, out = folder / "refused.yml", folder / "out"
        recipe.write_text(REFUSED)
        commands: list[tuple[str, list[str], int]] = [
            ("python -c pass", [options.python, "-c", "pass"], OK),
            ("import numpy", [options.python, "-c", "import numpy"], OK),
            ("cuvee --help", [*cuvee, "--help"], OK),
            ("cuvee methods", [*cuvee, "methods"], OK),
            ("recipe refused", [*cuvee, "merge", str(recipe), str(out)], USER_ERROR),
        ]
        if options.mergekit:
            commands.append(("mergekit-yaml --help", [str(options.mergekit / "bin/mergekit-yaml"), "--help"], OK))
        print(f"{'':<24}{'median s':>8}{'min':>9}{'max':>9}{'peak MB':>9}")
        good = [time_command(label, command, code, options.rounds, folder) for label, command, code in commands]
        for label, arguments in (("cuvee --help", ["--help"]), ("a refused recipe", ["merge", str(recipe), str(out)])):
            good.append(print_imports(label, imported(options.python, arguments), options.top))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
