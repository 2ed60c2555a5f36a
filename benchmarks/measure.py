"""One process measured from start to end: wall and CPU time, peak memory, how it ended. It knows no merging.

Peak resident memory is the larger of what the kernel recorded for the largest single process and the largest sum
over all processes seen at one moment; it counts pages of mapped files, which the kernel may take back. Peak anonymous
memory is what the program itself asked for; only Linux tells it. The kernel starts a child's record at its parent's
peak, so whoever measures must stay small: nothing here or in speed.py imports NumPy.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02
_POLLS_PER_SCAN = 5
_PROC = Path("/proc")


@dataclass(frozen=True)
class Run:
    """What one process, its children included, took."""

    exit_code: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    anonymous_mb: float | None
    """None where the system does not tell it."""
    processes: int
    """The most processes seen at one moment."""
    others_cpu_s: float | None
    """CPU time that everything else on the machine took meanwhile; None where the system does not tell it."""
    output: str
    """The last lines of what it printed."""


def measure(command: Sequence[str], log: Path, *, limit_s: float = 3600.0) -> Run:
    """The run of `command`, whose output goes to `log`; it is killed after `limit_s`."""
    # No network: neither tool may spend time asking a server about models that lie on the disk.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stream:
        busy = _machine_cpu_s()
        started = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        watch = _Watch(child.pid, limit_s)
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            # In a session of its own, it does not hear the terminal's Ctrl-C.
            os.killpg(child.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - started
    busy_after = _machine_cpu_s()
    child.returncode = os.waitstatus_to_exitcode(status)
    watch.stop.set()
    watch.join()
    largest_mb = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)
    cpu = usage.ru_utime + usage.ru_stime
    return Run(
        exit_code=child.returncode,
        wall_s=wall,
        cpu_s=cpu,
        peak_mb=max(largest_mb, watch.resident_kib * 1.024e-3),
        anonymous_mb=watch.anonymous_kib * 1.024e-3 if watch.anonymous_kib else None,
        processes=watch.processes,
        others_cpu_s=None if busy is None or busy_after is None else max(0.0, busy_after - busy - cpu),
        output=_tail(log),
    )


class _Watch(threading.Thread):
    """Follows the memory of every process of one session until told to stop."""

    def __init__(self, session: int, limit_s: float) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.resident_kib = self.anonymous_kib = 0
        self.processes = 1
        self._session = session
        self._limit_s = limit_s

    def run(self) -> None:
        deadline = time.monotonic() + self._limit_s
        members, poll = [self._session], 0
        while not self.stop.is_set():
            # Finding new processes means looking at all of them: done less often than reading the known ones.
            if poll % _POLLS_PER_SCAN == 0:
                members = _session_members(self._session) or members
            poll += 1
            memory = [_memory_kib(process) for process in members]
            self.processes = max(self.processes, sum(1 for resident, _ in memory if resident))
            self.resident_kib = max(self.resident_kib, sum(resident for resident, _ in memory))
            self.anonymous_kib = max(self.anonymous_kib, sum(anonymous for _, anonymous in memory))
            if time.monotonic() > deadline:
                os.killpg(self._session, signal.SIGKILL)
                return
            self.stop.wait(POLL_SECONDS)


def _session_members(session: int) -> list[int]:
    members = []
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                # The command's name, in brackets, may hold anything; the session is fourth after it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                members.append(int(entry.name))
    return members


def _memory_kib(process: int) -> tuple[int, int]:
    """Resident and anonymous memory of one process; zeros once it is gone."""
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return int(values.get("VmRSS", "0").split()[0]), int(values.get("RssAnon", "0").split()[0])


def _machine_cpu_s() -> float | None:
    """CPU time that the machine has spent on anything, or that its host has taken from it."""
    try:
        fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft_interrupts + stolen) / ticks


def _tail(log: Path, size: int = 2000) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - size))
        return stream.read().decode(errors="replace").strip()


def warm(files: Iterable[Path]) -> None:
    """Reads the files once, so that every run finds them in the page cache however the run before left it."""
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def machine(interpreters: dict[str, str]) -> dict[str, str]:
    """Where this runs, in words, and the versions that each named interpreter's environment holds."""
    facts = {"processor": _processor(), "cores": str(os.cpu_count()), "system": platform.platform(terse=True)}
    probe = (
        "import platform, importlib.metadata as m\n"
        "here = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "wanted = ('numpy', 'ml_dtypes', 'cuvee', 'mergekit', 'torch', 'transformers', 'safetensors')\n"
        "found = [f'{name} {here[name]}' for name in wanted if name in here]\n"
        "print(', '.join(['Python ' + platform.python_version(), *found]))"
    )
    if (_PROC / "meminfo").is_file():
        total_kib = int((_PROC / "meminfo").read_text().split()[1])
        facts["memory"] = f"{total_kib / 2**20:.0f} GiB"
    for tool, interpreter in interpreters.items():
        found = subprocess.run([interpreter, "-c", probe], capture_output=True, text=True, check=True)
        facts[tool] = found.stdout.strip()
    return facts


def _processor() -> str:
    if (_PROC / "cpuinfo").is_file():
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
