"""The command line: parses, calls the API, renders. No logic lives here; errors become exit codes only here.

Exit codes: 0 done, 2 something the user can mend, 1 a fault of Cuvee's own, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cuvee.errors import CONTINUE_WITH, CuveeError


def main(arguments: list[str] | None = None) -> None:
    """Runs `cuvee` and leaves the process with its exit code."""
    _run(arguments, "cuvee")


# What other programs' names stand for.
_COMMANDS = {"mergekit-yaml": ["merge"], "mergekit-extract-lora": ["lora", "extract"]}


def mergekit_yaml() -> None:
    """Runs `mergekit-yaml CONFIG OUT ...`, which is `cuvee merge` under the name that scripts know."""
    _run([*_COMMANDS["mergekit-yaml"], *sys.argv[1:]], "mergekit-yaml")


def mergekit_extract_lora() -> None:
    """Runs `mergekit-extract-lora ...`, which is `cuvee lora extract` under the name that scripts know."""
    _run([*_COMMANDS["mergekit-extract-lora"], *sys.argv[1:]], "mergekit-extract-lora")


def _prepare_process() -> None:
    """Sets what only the owner of a process may: nothing here changes a byte of a result."""
    # The engine runs BLAS with one thread a worker; started with more, NumPy takes a tenth of a second longer to load.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What imports and plans allocate stays: looking through it for garbage after every 700 objects finds none.
    gc.set_threshold(20_000, 20, 20)


def _run(arguments: list[str] | None, program: str) -> None:
    _prepare_process()
    import click

    from cuvee.cli.app import app

    given = sys.argv[1:] if arguments is None else arguments
    try:
        with _termination_as_interrupt():
            code = app.main(arguments, prog_name=program, standalone_mode=False)
    except click.exceptions.Exit as left:
        code = left.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click puts an error of its own around interrupts
        ended = isinstance(cause, _Terminated)
        _say(("terminated" if ended else "interrupted") + (_kept(cause, program, given) or "; nothing was left behind"))
        code = 143 if ended else 130
    except MemoryError as error:
        _say(
            f"error: out of memory\n  fix:      lower --memory, --threads or --processes{_kept(error, program, given)}"
        )
        code = 2
    except CuveeError as error:
        _say(f"error: {error}{_kept(error, program, given)}")
        code = 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


class _Terminated(KeyboardInterrupt):
    """The system or a scheduler asked the process to end, which is to be done as orderly as after Ctrl-C."""


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(error: BaseException, program: str, given: list[str]) -> str:
    """What an error's notes say of work that was kept, and the command that goes on with it."""
    notes = getattr(error, "__notes__", ())
    if not notes:
        return ""
    own = given[len(_COMMANDS.get(program, ())) :]
    words = [program, *(word for word in own if word != "--fresh")]
    if isinstance(error, CuveeError) and (option := error.facts.get(CONTINUE_WITH)):
        words.append(option)
    return "".join(f"\n  {line}" for line in (*notes, f"continue: {shlex.join(words)}"))


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - the one place where errors meet the user
