"""The command line: parses, calls the API, renders. No logic lives here; errors become exit codes only here.

Exit codes: 0 done, 2 something the user can mend, 1 a fault of Cuvee's own, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from cuvee.errors import CuveeError


def main(arguments: list[str] | None = None) -> None:
    """Runs `cuvee` and leaves the process with its exit code."""
    _run(arguments, "cuvee")


def mergekit_yaml() -> None:
    """Runs `mergekit-yaml CONFIG OUT ...`, which is `cuvee merge` under the name that scripts know."""
    _run(["merge", *sys.argv[1:]], "mergekit-yaml")


def mergekit_extract_lora() -> None:
    """Runs `mergekit-extract-lora ...`, which is `cuvee lora extract` under the name that scripts know."""
    _run(["lora", "extract", *sys.argv[1:]], "mergekit-extract-lora")


def _run(arguments: list[str] | None, program: str) -> None:
    import click

    from cuvee.cli.app import app

    try:
        code = app.main(arguments, prog_name=program, standalone_mode=False)
    except click.exceptions.Exit as left:
        code = left.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted; nothing was left behind")
        code = 130
    except CuveeError as error:
        _say(f"error: {error}")
        code = 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - the one place where errors meet the user
