"""Law 7: whatever ends a merge early, no directory is left that would load, and an old output stays as it was."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee import MergeOptions, api
from cuvee.errors import CuveeError, OutputError
from cuvee.numerics.block import Block
from cuvee.tensors import disk
from support.tiny_models import Family, load_checkpoint, make_llama, recipe

LINEAR = """
merge_method: linear
models: [{model: "@a"}, {model: "@b"}]
parameters: {weight: 0.5}
"""
SLOW_METHOD = '''
import time
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Weights

@merge_method("slow", base="none", models=(1, None))
def slow(weights: Weights):
    """Takes its time."""
    print("merging", flush=True)
    time.sleep(0.05)
    return weights.arrays[0] * 1.0
'''


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def titled(files: dict[str, bytes], before: str, title: str) -> dict[str, bytes]:
    """The files with another title in the card, which is the output's name."""
    return files | {"README.md": files["README.md"].replace(before.encode(), title.encode())}


def failing(after: int, error: BaseException, suffix: str = "") -> Callable[..., None]:
    """Writes as the engine does until `after` calls are done, then fails for files of this ending."""
    calls = iter(range(after))
    write_at = disk.write_at

    def write(descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        if path.name.endswith(suffix) and next(calls, None) is None:
            raise error
        write_at(descriptor, data, offset, path)

    return write


FAULTS: dict[str, Callable[[], BaseException]] = {
    "disk full": lambda: OutputError("cannot write: no space left on device", errno=errno.ENOSPC),
    "bug": lambda: ZeroDivisionError("a fault of our own"),
    "interrupt": KeyboardInterrupt,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_the_middle(
    fault: str, threads: int, llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = FAULTS[fault]()
    cuvee.merge(recipe(LINEAR, llama), here / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", failing(7, error, ".safetensors"))
        with pytest.raises(type(error)) as raised:
            cuvee.merge(recipe(LINEAR, llama), here / "out", MergeOptions(threads=threads))
    assert left_in(here) == ["out.partial", "whole"]
    (note,) = raised.value.__notes__
    count = int(re.fullmatch(rf"kept:     (\d+) of 30 tensors \(.* kB\) in {here}/out.partial", note)[1])
    assert 7 - threads <= count <= 7
    assert cuvee.merge(recipe(LINEAR, llama), here / "out").resumed == count
    assert snapshot(here / "out") == titled(snapshot(here / "whole"), "whole", "out")
    assert left_in(here) == ["out", "whole"]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_before_anything_is_recorded_leaves_nothing(
    fault: str, llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = FAULTS[fault]()
    monkeypatch.setattr(disk, "write_at", failing(7, error))  # the journal's writes fail too
    with pytest.raises(type(error)) as raised:
        cuvee.merge(recipe(LINEAR, llama), here / "out", MergeOptions(threads=1))
    assert not getattr(raised.value, "__notes__", ())
    assert left_in(here) == []


def test_system_call_that_fails_is_told_as_an_output_error(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, calls = os.pwrite, iter(range(9))

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"No space left on device(.|\n)*free some space"):
        cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert not (here / "out").exists()


def test_a_disk_that_fills_up_meanwhile_says_how_much_more_it_needs(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space cannot be reserved: 1,000 bytes are free, and nothing is written yet of what is planned."""
    planned = cuvee.plan(recipe(LINEAR, llama)).bytes_written

    free, pwrite = iter([1 << 30]), os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset == 0:  # the lock's
            return pwrite(descriptor, data, offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr("cuvee.engine.workplace.reserved_bytes", lambda _: 500)
    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(disk, "free_bytes", lambda _: next(free, 1000))  # there was enough when it started
    with pytest.raises(OutputError, match="No space left on device") as raised:
        cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert raised.value.expected == f"{(planned - 500) / 1000:.2f} kB free"
    assert raised.value.fix == f"free {(planned - 1500) / 1000:.2f} kB more, then run the same command again"


@pytest.mark.parametrize("step", ["write_file", "replace_directory"])
def test_fault_while_finishing(step: str, llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OutputError("cannot write")

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, fail)
        with pytest.raises(OutputError) as raised:
            cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert raised.value.__notes__[0].startswith("kept:     30 of 30 tensors")
    assert left_in(here) == ["out.partial"]
    assert cuvee.merge(recipe(LINEAR, llama), here / "out").resumed == 30
    assert left_in(here) == ["out"]


def test_fault_of_a_method(llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cuvee.methods import registry

    def broken(weights: Block, **_: object) -> object:
        if weights.start or weights.arrays[0].size < 300:
            raise ArithmeticError("broken method")
        return weights.arrays[0]

    monkeypatch.setitem(registry._specs, "linear", replace(registry.get_method("linear"), apply=broken))
    with pytest.raises(ArithmeticError, match="broken method"):
        cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert not (here / "out").exists()


def test_parents_made_for_a_merge_that_failed_go_too(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "write_at", failing(0, OutputError("cannot write")))
    with pytest.raises(OutputError):
        cuvee.merge(recipe(LINEAR, llama), here / "new" / "folders" / "out")
    assert left_in(here) == []


def test_existing_output_is_refused(llama: Family, here: Path) -> None:
    cuvee.merge(recipe(LINEAR, llama), here / "out")
    before = snapshot(here / "out")
    with pytest.raises(OutputError, match=r"exists already(.|\n)*--overwrite"):
        cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert snapshot(here / "out") == before


def test_overwrite_keeps_the_old_output_until_the_new_one_is_complete(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out"
    cuvee.merge(recipe(LINEAR, llama), out)
    (out / "notes.txt").write_text("of the old output")
    before = snapshot(out)
    seen: list[bool] = []
    replace_directory = disk.replace_directory

    def watch(new: Path, final: Path) -> None:
        seen.append(snapshot(final) == before and (new / "config.json").is_file())
        replace_directory(new, final)

    overwrite = MergeOptions(overwrite=True)
    other = recipe(LINEAR.replace("@b", "@c"), llama)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", failing(5, OutputError("cannot write")))
        with pytest.raises(OutputError):
            cuvee.merge(other, out, overwrite)
    assert snapshot(out) == before
    monkeypatch.setattr(disk, "replace_directory", watch)
    cuvee.merge(other, out, overwrite)
    assert seen == [True]
    assert left_in(here) == ["out"]
    assert not (out / "notes.txt").exists()
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_old_output_is_put_back_if_the_new_one_cannot_take_its_place(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out"
    cuvee.merge(recipe(LINEAR, llama), out)
    before = snapshot(out)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if (self.name, target) == ("model", out):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(disk, "_exchange", lambda first, second: False)  # as on systems that cannot swap
    with pytest.raises(OutputError, match="Input/output error"):
        cuvee.merge(recipe(LINEAR.replace("@b", "@c"), llama), out, MergeOptions(overwrite=True))
    assert left_in(here) == ["out", "out.partial"]
    assert snapshot(out) == before


def test_overwrite_of_an_input_works_from_what_it_was(here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a"))
    text = 'merge_method: linear\nmodels: [{model: "@base"}, {model: "@a"}]\nparameters: {weight: 0.5}\n'
    assert "takes its place" not in "".join(cuvee.merge(recipe(text, family), here / "fresh").warnings)
    report = cuvee.merge(recipe(text, family), family.path("a"), MergeOptions(overwrite=True))
    (said,) = [line for line in report.warnings if "takes its place" in line]
    assert said.startswith(f"{family.path('a')} is an input of this recipe")
    fresh, over = load_checkpoint(here / "fresh"), load_checkpoint(family.path("a"))
    assert {name for name in fresh if fresh[name].tobytes() != over[name].tobytes()} == set()


def test_an_output_that_appears_while_a_merge_is_planned_is_not_replaced(
    llama: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_and_meanwhile = api.open_recipe

    def slowly(*arguments: Any) -> Any:
        opened = plan_and_meanwhile(*arguments)
        monkeypatch.undo()
        cuvee.merge(recipe(LINEAR, llama), here / "out")  # somebody else's, who was quicker
        return opened

    monkeypatch.setattr(api, "open_recipe", slowly)
    with pytest.raises(OutputError, match="exists already"):
        cuvee.merge(recipe(LINEAR.replace("@b", "@c"), llama), here / "out")
    assert left_in(here) == ["out"]
    cuvee.merge(recipe(LINEAR, llama), here / "same")
    assert load_checkpoint(here / "out").keys() == load_checkpoint(here / "same").keys()
    assert (here / "out" / "model.safetensors").read_bytes() == (here / "same" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("ending", [".partial", ".replaced"])
def test_folders_of_the_user_with_working_names_survive(ending: str, here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a"))
    mine = here / f"out{ending}"
    family.path("base").rename(mine)
    before = snapshot(mine)
    text = f'merge_method: linear\nmodels: [{{model: {mine}}}, {{model: "@a"}}]\nparameters: {{weight: 0.5}}\n'
    (here / "out").mkdir()
    with suppress(CuveeError):  # to refuse is as good as to use another name
        cuvee.merge(recipe(text, family), here / "out", MergeOptions(overwrite=True))
    assert mine.is_dir()
    assert snapshot(mine) == before


def test_leftovers_of_a_killed_run_are_replaced(llama: Family, here: Path) -> None:
    partial = here / "out.partial"
    partial.mkdir()
    (partial / ".cuvee-merge").write_text("999999999")  # no such process
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "stray.bin").write_bytes(b"half")
    cuvee.merge(recipe(LINEAR, llama), here / "out")
    assert left_in(here) == ["out"]
    assert not (here / "out" / "stray.bin").exists()


@contextmanager
def slow_merge(family: Family, here: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A `cuvee merge` in a process group of its own, in the middle of its work; it would take a few seconds more.

    Its method comes as other people's do: from a package with an entry point.
    """
    package = here.parent / "package"
    (package / "slow-1.dist-info").mkdir(parents=True)
    (package / "slow-1.dist-info" / "entry_points.txt").write_text("[cuvee.methods]\nslow = slow_method\n")
    (package / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (package / "slow_method.py").write_text(SLOW_METHOD)
    (here.parent / "slow.yml").write_text(recipe('merge_method: slow\nmodels: [{model: "@a"}]\n', family))
    arguments = [sys.executable, "-m", "cuvee", "merge", str(here.parent / "slow.yml"), "out", "--quiet", *options]
    with subprocess.Popen(
        arguments,
        cwd=here,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Jobs that a script puts in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread starts it
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("merging"), process.communicate()[1]
        assert left_in(here) == ["out.partial"]
        yield process
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_llama(tmp_path_factory.mktemp("deep"), layers=40, names=("base", "a"))


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGINT, ("--threads", "1")),
        (signal.SIGINT, ("--processes", "2")),
        (signal.SIGTERM, ()),
        (signal.SIGTERM, ("--processes", "2")),
    ],
    ids=["ctrl-c", "1 thread", "2 processes", "terminated", "2 processes, terminated"],
)
def test_interrupts_end_cleanly_and_say_how_to_go_on(
    ending: signal.Signals, options: tuple[str, ...], deep: Family, here: Path
) -> None:
    with slow_merge(deep, here, *options) as process:
        time.sleep(0.2)
        if ending is signal.SIGINT:
            os.killpg(process.pid, ending)  # a terminal sends it to the whole group
        else:
            process.send_signal(ending)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 20
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[ending]
    said = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[ending]
    first, *rest = errors.strip().splitlines()
    if not rest:  # worker processes hand in their tensors by the dozen
        assert "--processes" in options
        assert first == f"{said}; nothing was left behind"
        assert left_in(here) == []
        return
    kept, command = rest
    assert first == said
    assert re.match(r"  kept:     \d+ of 363 tensors \(.*\) in .*/out.partial$", kept)
    assert command == f"  continue: cuvee merge {here.parent}/slow.yml out --quiet {' '.join(options)}".rstrip()
    assert left_in(here) == ["out.partial"]


def test_kill_leaves_no_output_and_the_same_command_then_works(deep: Family, here: Path) -> None:
    with slow_merge(deep, here) as process:
        time.sleep(0.2)
        process.kill()
        process.wait(timeout=30)
    assert left_in(here) == ["out.partial"]
    assert not (here / "out.partial" / "config.json").exists()
    cuvee.merge(recipe('merge_method: passthrough\nmodels: [{model: "@a"}]\n', deep), here / "out")
    assert left_in(here) == ["out"]
