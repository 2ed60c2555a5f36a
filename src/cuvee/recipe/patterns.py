"""Regular expressions of recipes, applied to tensor names in bounded time.

Python's expressions can take longer than anyone waits (`(a+)+b`), and only their own process can be stopped. So those
that repeat or choose more than once run in a process of their own; plain ones need none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from cuvee.errors import PlanError

SECONDS = 10.0
_CHOICES = re.compile(r"[*+?{|]")
_CHILD = (
    "import json, re, sys\n"
    "pattern, replacement, names = json.load(sys.stdin)\n"
    "json.dump([re.subn(pattern, replacement, name) for name in names], sys.stdout)\n"
)


def substituted(pattern: str, replacement: str, names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name after `re.subn`, and how often the pattern was found in it.

    Raises:
        PlanError: if that takes longer than `SECONDS`, or cannot be worked out.

    """
    # With a single choice the work grows with the square of a name's length at most.
    if len(_CHOICES.findall(pattern)) <= 1 or not sys.executable:
        expression = re.compile(pattern)
        return [expression.subn(replacement, name) for name in names]
    try:
        done = subprocess.run(  # noqa: S603 - our own text, run by the interpreter that runs us
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([pattern, replacement, names]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(pattern, f"it was not done with {len(names)} names after {SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise _refusal(pattern, said[-1][:200] if said else f"exit code {error.returncode}") from None
    return [(name, count) for name, count in json.loads(done.stdout)]


def check_replacement(expression: re.Pattern[str], replacement: str) -> None:
    """Raises re.error or IndexError if `replacement` asks for groups that `expression` has not; runs no expression."""
    names = {number: name for name, number in expression.groupindex.items()}
    groups = (f"(?P<{names[i]}>)" if i in names else "()" for i in range(1, expression.groups + 1))
    re.compile("".join(groups)).sub(replacement, "")


def _refusal(pattern: str, found: str) -> PlanError:
    return PlanError(
        f"rename {pattern!r} cannot be applied",
        found=found,
        fix=r"write it with fewer repetitions inside one another: `[^.]+` or `\d+` for one part of a name",
        pattern=pattern,
    )
