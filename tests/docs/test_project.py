"""What the project's own files say of each other holds: constraints, make's targets, CI."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.pages import PAGES, ROOT, blocks

CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def needed() -> list[Requirement]:
    """What the core and the extras that make installs ask for."""
    found = []
    for text in metadata.requires("cuvee") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("test", "dev")):
            found.append(requirement)
    return found


@pytest.mark.parametrize("requirement", needed(), ids=lambda requirement: requirement.name)
def test_constraints_name_a_version_that_is_enough(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    (pinned,) = (each for each in CONSTRAINTS if canonicalize_name(each.name) == name)
    (only,) = pinned.specifier
    assert only.operator == "=="
    assert requirement.specifier.contains(only.version)


def test_every_requirement_is_a_lower_bound() -> None:
    operators = {each.operator for requirement in needed() for each in requirement.specifier}
    assert operators == {">="}


def test_make_installs_torch_by_the_version_of_the_constraints() -> None:
    (torch,) = (each for each in CONSTRAINTS if each.name == "torch")
    assert f"$(INSTALL) torch{torch.specifier}\n" in MAKEFILE


def test_targets_that_pages_name_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    lines = "\n".join(block.text for page in PAGES for block in blocks(page, "sh"))
    named = set(re.findall(r"`make ([\w-]+)`", text)) | set(re.findall(r"^make ([\w-]+)", lines, re.MULTILINE))
    assert {"demo", "test", "check"} <= named
    assert named <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


def test_the_readme_opens_with_the_two_commands_and_ci_calls_the_second() -> None:
    opening = blocks(ROOT / "README.md")[0].text.splitlines()
    assert [line.split("#")[0].strip() for line in opening] == ["make demo", "make test"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").endswith("make test\n")
