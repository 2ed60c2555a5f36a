"""The long fuzzing: `python tests/fuzz/run.py [INPUTS] [--table FILE]`, as `make fuzz` runs it.

Every parser of strangers' input gets its share of INPUTS made by hypothesis, and, where atheris is installed, as many
again that atheris makes by watching which branches they reach. Any outcome other than success or a `CuveeError` is
printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["cuvee"]):
        from support.fuzzing import TARGETS
        from support.fuzzing_target import Target, taken
else:
    from support.fuzzing import TARGETS
    from support.fuzzing_target import Target, taken

PAGE = """\
# Fuzzing

Every parser of strangers' input, fed with inputs that a strategy draws (hypothesis) and that are bred for new branches
(atheris). Taken means that it was understood, refused that it ended in one typed error. Anything else would be a fault.

```sh
python tests/fuzz/run.py {inputs} --table docs/fuzzing-table.md    # `make fuzz` runs 100,000
```

{table}
"""
COUNTED = ("inputs", "taken", "refused")


class Tally:
    """What became of the inputs of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.inputs = self.taken = self.refused = 0
        self.slowest = 0.0
        self.finds: list[str] = []

    def one(self, data: bytes) -> None:
        """Runs one input."""
        begin = time.process_time()
        self.inputs += 1
        try:
            accepted = taken(self.target, data)
        except Exception as error:
            self.finds.append(f"{type(error).__name__}: {error} for {data!r}"[:500])
            raise
        self.taken += accepted
        self.refused += not accepted
        self.slowest = max(self.slowest, time.process_time() - begin)


def by_hypothesis(target: Target, count: int) -> Tally:
    """A target's inputs as its strategy draws them."""
    tally = Tally(target)

    @seed(count)
    @given(target.inputs)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    def check(data: bytes) -> None:
        tally.one(data)

    try:
        check()
    except Exception as error:
        tally.finds.append(f"{type(error).__name__}: {error}"[:500])
    return tally


def by_atheris(target: Target, count: int) -> Tally:
    """A target's inputs as atheris makes them, in a process of its own, because it never returns."""
    tally = Tally(target)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(target.seeds):
            (Path(folder) / f"seed-{number}").write_bytes(data)
        command = [sys.executable, __file__, "--atheris", target.name, "--corpus", folder, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        tally.finds.append(done.stderr[-1500:] or done.stdout[-1500:])
        return tally
    told: dict[str, Any] = json.loads(lines[-1])
    for name in (*COUNTED, "slowest"):
        setattr(tally, name, told[name])
    return tally


def atheris_worker(name: str, folder: str, count: int) -> None:
    """Fuzzes one target with atheris and prints its tally just before the end."""
    target = next(target for target in TARGETS if target.name == name)
    tally = Tally(target)

    def one(data: bytes) -> None:
        tally.one(data)
        if tally.inputs == count:
            print(json.dumps({key: getattr(tally, key) for key in (*COUNTED, "slowest")}), flush=True)

    atheris.Setup([sys.argv[0], f"-runs={count + 50}", "-max_len=4096", "-rss_limit_mb=4096", "-seed=1", folder], one)
    atheris.Fuzz()


def table(rows: list[tuple[str, str, Tally]]) -> str:
    """The tallies in Markdown."""
    lines = [
        "| parser | inputs by | inputs | taken | refused | anything else | slowest, ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, maker, tally in rows:
        counts = f"{tally.inputs:,} | {tally.taken:,} | {tally.refused:,} | {len(tally.finds)}"
        lines.append(f"| {name} | {maker} | {counts} | {1000 * tally.slowest:.0f} |")
    total = sum(tally.inputs for *_, tally in rows)
    finds = sum(len(tally.finds) for *_, tally in rows)
    return "\n".join([*lines, f"| all | | {total:,} | | | {finds} | |"])


def main() -> int:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=int, nargs="?", default=100_000)
    parser.add_argument("--table", type=Path, help="write the table to this file")
    parser.add_argument("--only", help="one parser")
    parser.add_argument("--atheris", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.atheris:
        atheris_worker(options.atheris, options.corpus, options.inputs)
        return 0
    targets = [target for target in TARGETS if options.only in (None, target.name)]
    each = -(-options.inputs // len(targets))
    rows: list[tuple[str, str, Tally]] = []
    makers = [("hypothesis", by_hypothesis)] + ([("atheris", by_atheris)] if find_spec("atheris") else [])
    for target in targets:
        for maker, run in makers:
            rows.append((target.name, maker, run(target, each)))
            print(table(rows[-1:]).splitlines()[2], *rows[-1][2].finds, sep="\n", flush=True)
    text = table(rows)
    if len(makers) == 1:
        text += "\n\natheris is not installed here: `pip install atheris` adds its inputs."
    print(text)
    if options.table:
        options.table.write_text(PAGE.format(inputs=options.inputs, table=text))
    return int(any(tally.finds for *_, tally in rows))


if __name__ == "__main__":
    sys.exit(main())
