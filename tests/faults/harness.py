"""Merges that are killed, starved and lied to, and what comes of them, counted.

    python tests/faults/harness.py            everything, a few minutes; prints the table of docs/reliability.md
    python tests/faults/harness.py --kills 20 --seed 3

Every trial ends with the same question: is there nothing at OUT (or the old output), or the finished merge to the last
byte; and does the same command, given again, lead to it?
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.kinds import make_kinds
from support.tiny_models import Family, make_llama, recipe

VICTIM = Path(__file__).with_name("victim.py")
TIES = """
merge_method: dare_ties
base_model: "@base"
models:
  - {model: "@a", parameters: {weight: 0.6, density: 0.5}}
  - {model: "@b", parameters: {weight: 0.3, density: 0.4}}
"""
COPIES = """
merge_method: passthrough
slices:
  - sources: [{model: "@a", layer_range: [0, 5]}]
  - sources: [{model: "@b", layer_range: [1, 6]}]
"""
KINDS = {
    "surveyed": "ties trimmed over the whole model",
    "folders": "weights in subfolders",
    "vocabularies": "a union of vocabularies",
    "adapters": "adapters",
}
EVERY = 0.002
SLOWLY = {"pace": 0.02}


@dataclass
class Tally:
    """What became of the trials of one kind."""

    trials: int = 0
    finished: int = 0
    """Runs that the fault came too late for, or that it did not stop."""
    stopped: int = 0
    resumed: int = 0
    """Runs that found earlier work and went on with it."""
    wrong: list[str] = field(default_factory=list)


@dataclass
class Scene:
    """A merge, its right result, and a place where it is tried."""

    folder: Path
    family: Family
    text: str
    options: tuple[str, ...] = ()
    old: bool = False
    """Whether an older output lies at OUT, to be replaced."""
    shard_size: str = "40k"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yml").write_text(recipe(self.text, self.family))
        self.right = self.folder / "right" / "out"
        done = self.run({}, out=self.right)
        assert done.returncode == 0, done.stderr
        self.home = self.folder / "work"
        self.out = self.home / "out"
        self.clear()

    def clear(self) -> None:
        """Puts the place back to what it was before the first run."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        if self.old:
            self.out.mkdir()
            (self.out / "config.json").write_text('{"old": true}')

    def command(self, settings: dict[str, Any], out: Path | None = None) -> list[str]:
        merge = ["merge", str(self.folder / "recipe.yml"), str(out or self.out), "--out-shard-size", self.shard_size]
        overwrite = ["--overwrite"] if self.old else []
        return [
            sys.executable,
            str(VICTIM),
            json.dumps({"every": EVERY, **settings}),
            *merge,
            *overwrite,
            *self.options,
        ]

    def run(self, settings: dict[str, Any], out: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(settings, out), capture_output=True, text=True, check=False)

    def kill_after(self, seconds: float) -> str:
        """Kills a run so long after it was ready; what it had said."""
        with subprocess.Popen(
            self.command(SLOWLY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            return process.communicate()[1]

    def seconds(self) -> float:
        """How long a run takes from `ready` on."""
        self.clear()
        with subprocess.Popen(
            self.command(SLOWLY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            begin = time.perf_counter()
            process.communicate()
        self.clear()
        return time.perf_counter() - begin

    def fault(self) -> str | None:
        """What is wrong with what lies at OUT now, or beside it."""
        if loads(self.out.with_name("out.partial")):
            return "out.partial would load"
        if not self.out.exists():
            return "the old output is gone" if self.old else None
        if self.old and (self.out / "config.json").read_text() == '{"old": true}':
            return None
        return self.unfinished()

    def unfinished(self) -> str | None:
        """What is not as in the finished merge."""
        if not self.out.exists():
            return "no output"
        found, right = files_of(self.out), files_of(self.right)
        return (
            None if found == right else f"differs in {sorted(n for n in found | right if found.get(n) != right.get(n))}"
        )

    def left_over(self) -> str | None:
        names = sorted(path.name for path in self.home.iterdir())
        return None if names == ["out"] else f"left {names}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loads(folder: Path) -> bool:
    """Whether a loader would take the folder for a model: it has a config and weights."""
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))


def finish(scene: Scene, tally: Tally, name: str) -> None:
    """Gives the command once more, without faults, and compares."""
    if scene.out.exists() and not scene.old and scene.unfinished() is None:
        return  # it was killed after the end
    done = scene.run({})
    tally.resumed += "going on" in done.stderr
    problem = done.stderr.strip() if done.returncode else scene.unfinished() or scene.left_over()
    if problem:
        tally.wrong.append(f"{name}: {problem}")


def kills_at_random(scene: Scene, count: int, seed: int) -> Tally:
    """SIGKILL at random instants of a run, of the run that goes on from it, and so forth; now and then one finishes."""
    longest = scene.seconds()
    draw, tally = random.Random(seed), Tally(trials=count)
    for number in range(count):
        said = scene.kill_after(draw.uniform(0, longest))
        tally.resumed += "going on" in said
        if problem := scene.fault():
            tally.wrong.append(f"kill {number}: {problem}")
        if scene.unfinished() is None:
            tally.finished += 1
            scene.clear()
            continue
        tally.stopped += 1
        if draw.random() < 0.25:
            finish(scene, tally, f"kill {number}")
            scene.clear()
    return tally


def changes_of(scene: Scene) -> int:
    """How often a whole run changes the disk."""
    scene.clear()
    calls = scene.folder / "calls"
    scene.run({"calls": str(calls)})
    return int(calls.read_text())


def kills_at_changes(scene: Scene, points: Sequence[int], power: bool = False) -> Tally:
    """SIGKILL before chosen changes of the disk; with `power` also all that was not made durable is lost."""
    tally = Tally(trials=len(points))
    for point in points:
        scene.clear()
        trace = scene.folder / "trace"
        trace.unlink(missing_ok=True)
        done = scene.run({"die_at": point, **({"trace": str(trace)} if power else {})})
        tally.stopped += done.returncode == -signal.SIGKILL
        tally.finished += done.returncode == 0
        if power and done.returncode and trace.exists():
            lose_power(trace, scene.home)
        if problem := scene.fault():
            tally.wrong.append(f"change {point}: {problem}")
        finish(scene, tally, f"change {point}")
    return tally


def lose_power(trace: Path, home: Path) -> None:
    """Overwrites with noise what had been written to files and never been made durable: the worst that can be lost."""
    waiting: dict[str, list[tuple[int, int]]] = {}
    begun: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        kind, path, *rest = json.loads(line)
        if kind == "write":
            waiting.setdefault(path, []).append((rest[0], rest[1]))
        elif kind == "begin":
            begun[path] = len(waiting.get(path, ()))
        elif kind == "durable":
            del waiting.setdefault(path, [])[: begun[path]]
    noise = random.Random(1)
    for path, lost in waiting.items():
        if Path(path).exists() and Path(path).is_relative_to(home):
            with Path(path).open("r+b") as file:
                for offset, count in lost:
                    file.seek(offset)
                    file.write(noise.randbytes(count))


def spread(count: int, among: int, seed: int) -> list[int]:
    """So many different numbers from 1 to `among`, the first and last of them too."""
    inner = random.Random(seed).sample(range(2, among), max(min(count, among) - 2, 0))
    return sorted([1, among, *inner])


def on_small_disk(folder: Path, family: Family) -> Iterator[tuple[str, Tally]]:
    """Real disks that are too small: a tmpfs of a few megabytes, where this machine lets one be mounted."""
    mount = folder / "small"
    mount.mkdir()
    order = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)]
    if subprocess.run(order, check=False, capture_output=True).returncode:
        return
    try:
        scene = Scene(mount / "s", family, TIES)
        tally = Tally(trials=1)
        filler = mount / "filler"
        done = scene.run({"fill": str(filler)})
        check_full(scene, tally, done)
        filler.unlink()
        finish(scene, tally, "full while finishing")
        yield "real full disk (tmpfs), space taken by another program while merging", tally
        scene.clear()
        tally = Tally(trials=1)
        free = shutil.disk_usage(mount).free
        with filler.open("wb") as stream:
            stream.write(bytes(free - 100_000))
        done = scene.run({})
        tally.stopped += done.returncode == 2 and "not enough disk space" in done.stderr
        if tally.stopped != 1 or scene.left_over() != "left []":
            tally.wrong.append(f"too small: {done.returncode} {done.stderr} {scene.left_over()}")
        filler.unlink()
        finish(scene, tally, "too small")
        yield "real full disk (tmpfs), too small from the start", tally
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)


def check_full(scene: Scene, tally: Tally, done: subprocess.CompletedProcess[str]) -> None:
    tally.stopped += done.returncode == 2
    said = "No space left on device" in done.stderr and "kept:" in done.stderr and "continue:" in done.stderr
    if not said or done.returncode != 2 or (problem := scene.fault()):
        tally.wrong.append(f"full disk: {done.returncode} {done.stderr} {problem if said else ''}")


def rows(folder: Path, kills: int, points: int, seed: int) -> Iterator[tuple[str, Tally]]:
    """Every kind of trial with its tally, as it is done."""
    family = make_llama(folder / "family", layers=6, hidden=32)
    ties = Scene(folder / "ties", family, TIES, ("--threads", "2"))
    copies = Scene(folder / "copies", family, COPIES, old=True)
    shared = Scene(folder / "processes", family, TIES, ("--processes", "2"))
    kinds = make_kinds(folder / "kinds")
    each = kills // 8
    yield "SIGKILL at a random instant: dare_ties, two threads", kills_at_random(ties, kills - 6 * each, seed)
    yield "SIGKILL at a random instant: copies over an old output", kills_at_random(copies, each, seed + 1)
    yield "SIGKILL at a random instant: two worker processes", kills_at_random(shared, each, seed + 2)
    for number, (kind, text) in enumerate(kinds.items()):
        options, old = (("--processes", "2"), False) if number % 2 else ((), True)
        scene = Scene(folder / kind, family, text, options, old, shard_size="5k")
        where = "over an old output" if old else "two worker processes"
        tally = kills_at_random(scene, each, seed + 3 + number)
        yield f"SIGKILL at a random instant: {KINDS[kind]}, {where}", tally
    for name, scene in (("new output", ties), ("old output replaced", copies)):
        chosen = spread(points, changes_of(scene), seed)
        yield f"SIGKILL before a chosen change of the disk: {name}", kills_at_changes(scene, chosen)
        yield f"power lost there, and all that was not durable: {name}", kills_at_changes(scene, chosen, power=True)
    yield from on_small_disk(folder, family)
    yield from injected_rows(folder, points, seed)


def injected_rows(folder: Path, points: int, seed: int) -> Iterator[tuple[str, Tally]]:
    from faults import injected

    for number, fault in enumerate(injected.FAULTS):
        yield fault.name, injected.suffer(fault, folder / f"injected{number}", points, seed)
    for number, (name, faults) in enumerate(injected.LINES.items()):
        yield f"Hub: {name}", injected.bad_line(faults, folder / f"hub{number}")


def table(found: Sequence[tuple[str, Tally]]) -> str:
    lines = [
        "| fault | trials | stopped by it | went on from earlier work | wrong |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | {t.trials} | {t.stopped} | {t.resumed} | {len(t.wrong)} |" for name, t in found]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    found: list[tuple[str, Tally]] = []
    with tempfile.TemporaryDirectory(prefix="cuvee-faults-") as folder:
        for name, tally in rows(Path(folder), chosen.kills, chosen.points, chosen.seed):
            found.append((name, tally))
            print(f"{name}: {tally}", file=sys.stderr, flush=True)
    print(table(found))
    return 1 if any(tally.wrong for _, tally in found) else 0


if __name__ == "__main__":
    sys.exit(main())
