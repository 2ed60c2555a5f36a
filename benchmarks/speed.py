"""Cuvee raced against mergekit and against `cp`: wall time, CPU time and memory of whole processes.

    python benchmarks/speed.py                                Cuvee alone, every method it knows
    python benchmarks/speed.py --mergekit ENV                 in turn with a virtual environment's mergekit
    python benchmarks/speed.py --threads 1,2 --processes 2    how Cuvee scales
    python benchmarks/speed.py --size tiny --rounds 1         does it run at all

Makes its inputs under --scratch once (4 GB at full size, see inputs.py) and keeps them. Needs nothing but the standard
library; making and comparing checkpoints runs in processes of its own, which need NumPy and ml_dtypes.

An environment in which every recipe runs through mergekit 0.1.5 (with transformers 5.23 the config that it
writes for stacked layers is refused):

    python -m venv ENV && ENV/bin/pip install mergekit==0.1.5 'transformers==5.0.*' torch==2.13.0
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headers import check_output
from inputs import SHAPES, parameter_count
from measure import Run, machine, measure, warm
from recipes import FOUNDATION, RANDOM, RECIPES, expected_tensors, models_used, write_recipe
from report import (
    AIM_COLUMNS,
    COLUMNS,
    Record,
    Results,
    aims,
    as_json,
    markdown,
    others_share,
    table_row,
    terminal_line,
)

HELP = "--help"
COPY = "cp"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Side:
    """One way of doing a merge; `command` takes the recipe's file and the output's folder."""

    name: str
    command: Callable[[str, str], list[str]]
    help_command: list[str] | None = None


def cuvee_sides(python: str, threads: Sequence[int], processes: Sequence[int]) -> list[Side]:
    """Cuvee as it comes, then with each number of threads and of worker processes."""
    plain = [python, "-m", "cuvee"]

    def side(name: str, *flags: str, help_command: list[str] | None = None) -> Side:
        fixed = ("--overwrite", "--quiet", "--no-copy-tokenizer")
        return Side(name, lambda recipe, out: [*plain, "merge", recipe, out, *fixed, *flags], help_command)

    return [
        side("cuvee", help_command=[*plain, HELP]),
        *(side(f"cuvee -j {count}", "-j", str(count)) for count in threads),
        *(side(f"cuvee --processes {count}", "--processes", str(count)) for count in processes),
    ]


def mergekit_side(environment: Path) -> Side:
    """The mergekit of a virtual environment, with the options it starts with."""
    program = str(environment / "bin" / "mergekit-yaml")
    return Side(
        "mergekit",
        lambda recipe, out: [program, recipe, out, "--no-copy-tokenizer", "--quiet"],
        [program, HELP],
    )


def copy_sides(sources: Sequence[Path]) -> list[Side]:
    """`cp` of what a merge of `sources` must at least move: each read, one written; then also waited for."""
    reads = [shlex.join(["cp", str(source), "/dev/null"]) for source in sources]

    def script(out: str, *more: str) -> list[str]:
        place = shlex.quote(out)
        write = [f"mkdir {place}", f"cp {shlex.quote(str(sources[0]))} {place}/copy"]
        return ["sh", "-c", " && ".join([*reads, *write, *(f"{command} {place}/copy" for command in more)])]

    return [
        Side(COPY, lambda _, out: script(out)),
        Side(f"{COPY}, sync", lambda _, out: script(out, "sync")),
    ]


class Race:
    """The rounds of every method, printed as they go. It holds where things lie and what was found."""

    def __init__(self, options: argparse.Namespace, sides: Sequence[Side], results: Results) -> None:
        self.options = options
        self.sides = sides
        self.results = results
        self.shape = SHAPES[options.size]
        self.models = options.scratch / options.size
        self.outputs = self.models / "out"
        self.failed = False

    def method(self, method: str) -> None:
        """Runs every round of one method and prints its rows."""
        recipe = self.models / f"{method}.yml"
        files = []
        contenders = list(self.sides)
        if method != HELP:
            write_recipe(method, self.models, self.shape, recipe)
            files = [self.models / model / "model.safetensors" for model in models_used(method)]
        if method == "linear":
            contenders += copy_sides(files)
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir(parents=True)
        out: set[str] = set()  # a side that failed once is not asked again
        for index in range(self.options.rounds):
            for side in [each for each in contenders if each.name not in out]:
                command = (
                    side.help_command if method == HELP else side.command(str(recipe), str(self.outputs / side.name))
                )
                if command is None or not self._run(method, side, index, command, files):
                    out.add(side.name)
        for side in contenders:
            if row := table_row(self.results.records, method, side.name):
                print(terminal_line(row), flush=True)
        if self.options.compare and method not in RANDOM and method != HELP:
            self._compare(method)
        shutil.rmtree(self.outputs)

    def _run(self, method: str, side: Side, index: int, command: list[str], files: Sequence[Path]) -> bool:
        output = self.outputs / side.name
        # Deleted and settled, so that no run waits for what another left to be written.
        shutil.rmtree(output, ignore_errors=True)
        os.sync()
        warm(files)
        run = measure(command, self.models / "log.txt", limit_s=self.options.limit)
        self.results.records.append(Record(method, side.name, index, run))
        if self.options.verbose:
            print(
                f"  {method} {side.name} round {index + 1}: {run.wall_s:.2f} s, exit code {run.exit_code}",
                flush=True,
            )
        problem = self._problem(method, side, index, run, output)
        if problem:
            self._note(f"{method}: {side.name} {problem}")
            self.failed |= side.name.startswith("cuvee")
        if not (self.options.compare and index == self.options.rounds - 1):
            shutil.rmtree(output, ignore_errors=True)
        return run.exit_code == 0

    def _problem(self, method: str, side: Side, index: int, run: Run, output: Path) -> str | None:
        if run.exit_code:
            last = run.output.splitlines()[-1:] or ["no output"]
            return f"failed with exit code {run.exit_code}: {last[0].strip()}"
        if index or method == HELP or side.name.startswith(COPY):
            return None
        wrong = check_output(output, expected_tensors(method, self.shape), "BF16")
        return f"wrote an unexpected checkpoint: {wrong}" if wrong else None

    def _compare(self, method: str) -> None:
        ours, theirs = self.outputs / "cuvee", self.outputs / "mergekit"
        if not (ours.is_dir() and theirs.is_dir()):
            return
        command = [sys.executable, str(HERE / "compare.py"), str(ours), str(theirs)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self.results.differences[method] = found
        apart = f"largest {found['largest']:.3g}, mean {found['mean']:.3g}, {found['differing']:.2%} of values"
        print(f"  differences: {apart}", flush=True)

    def _note(self, text: str) -> None:
        self.results.notes.append(text)
        print(f"  {text}", flush=True)


def known_methods(python: str) -> set[str]:
    """The names of the methods that the interpreter's Cuvee can run."""
    listed = subprocess.run([python, "-m", "cuvee", "methods", "--json"], capture_output=True, text=True, check=False)
    if listed.returncode:
        sys.exit(f"`{python} -m cuvee methods --json` failed:\n{listed.stderr}")
    return {entry["name"] for entry in json.loads(listed.stdout)}


def parse_arguments() -> argparse.Namespace:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731 - an argparse type, nothing more
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("scratch/speed"), help="folder for inputs and outputs")
    parser.add_argument("--python", default=sys.executable, help="interpreter whose Cuvee runs (default: this one)")
    parser.add_argument("--mergekit", type=Path, metavar="ENV", help="virtual environment that holds mergekit")
    parser.add_argument("--only", choices=("cuvee", "mergekit"), help="leave the other side out")
    parser.add_argument("--methods", help=f"names, `foundation` or `all` (default: all); {HELP} is always timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SHAPES, default="full", help="the models' size; small ones are smoke tests")
    parser.add_argument("--threads", type=numbers, default=[], metavar="N,N", help="also run Cuvee with -j N")
    parser.add_argument(
        "--processes", type=numbers, default=[], metavar="N,N", help="also run Cuvee with --processes N"
    )
    parser.add_argument("--compare", action="store_true", help="compare the two outputs' values")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="kill a run after so long")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every single run")
    options = parser.parse_args()
    if options.only == "mergekit" and not options.mergekit:
        parser.error("--only mergekit needs --mergekit ENV")
    options.scratch = options.scratch.resolve()
    options.names = {None: list(RECIPES), "all": list(RECIPES), "foundation": list(FOUNDATION)}.get(
        options.methods, (options.methods or "").split(",")
    )
    if unknown := [name for name in options.names if name not in RECIPES]:
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    return options


def main() -> int:
    options = parse_arguments()
    # Ended politely, it still has a child to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = options.scratch / options.size
    subprocess.run([sys.executable, str(HERE / "inputs.py"), str(folder), "--size", options.size], check=True)
    sides, interpreters = [], {}
    if options.only != "mergekit":
        sides += cuvee_sides(options.python, options.threads, options.processes)
        interpreters["Cuvee's environment"] = options.python
    if options.mergekit and options.only != "cuvee":
        sides.append(mergekit_side(options.mergekit))
        interpreters["mergekit's environment"] = str(options.mergekit / "bin" / "python")
    facts = {**machine(interpreters), "load when started": f"{os.getloadavg()[0]:.1f}"}
    millions = parameter_count(SHAPES[options.size]) / 1e6
    inputs = f"Checkpoints of {millions:.0f} M parameters each, bfloat16, Qwen2.5-0.5B's shape ({options.size} size)."
    results = Results(shlex.join(["python", *sys.argv]), facts, inputs)
    print(
        "\n".join(f"{name}: {text}" for name, text in facts.items()),
        terminal_line(COLUMNS),
        sep="\n",
        flush=True,
    )
    race = Race(options, sides, results)
    known = set(RECIPES) if options.only == "mergekit" else known_methods(options.python)
    for method in (HELP, *options.names):
        if method != HELP and method not in known:
            print(f"  {method}: skipped, this Cuvee does not know it", flush=True)
            continue
        race.method(method)
        # After every method, so that a race cut short leaves what it found.
        for file, text in ((options.markdown, markdown), (options.json, as_json)):
            if file:
                file.write_text(text(results))
    print("\n".join(f"{name}: {text}" for name, text in others_share(results.records).items()))
    if options.size == "full":
        print(*(" ".join(f"{cell:>19}" for cell in row) for row in (AIM_COLUMNS, *aims(results.records))), sep="\n")
    return 1 if race.failed else 0


if __name__ == "__main__":
    sys.exit(main())
