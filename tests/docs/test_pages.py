"""Links lead somewhere, recipes load without a warning, command lines parse, errors say what the page says."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest

from cuvee.cli import main
from cuvee.cli.app import app
from cuvee.demo import family
from cuvee.methods import registry
from cuvee.recipe.load import load_recipe
from support.pages import DOCS, PAGES, ROOT, Block, blocks, prose

ERRORS = DOCS / "errors.md"
RECIPES = [block for page in PAGES if page != ERRORS for block in blocks(page, "yaml") if "merge_method:" in block.text]
REFUSED = [(first, then) for first, then in pairwise(blocks(ERRORS)) if first.language == "yaml"]


def command_lines() -> list[str]:
    """Every command line of ours in blocks and in running text."""
    in_blocks = [line.removeprefix("$ ") for page in PAGES for b in blocks(page, "sh") for line in b.text.splitlines()]
    in_consoles = [
        line[2:] for page in PAGES for b in blocks(page, "console") for line in b.text.splitlines() if line[:2] == "$ "
    ]
    in_prose = [
        found for page in PAGES for found in re.findall(r"`((?:cuvee|mergekit-yaml) (?!--help)[^`]+)`", prose(page))
    ]
    ours = [line for line in in_blocks + in_consoles + in_prose if re.match("(cuvee|mergekit-yaml) (?!--help)", line)]
    return sorted(set(ours))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        assert goal.exists(), f"{page.name} links to {target}"
        assert goal.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(goal), f"{page.name} links to {target}"


def test_there_are_recipes_on_the_pages() -> None:
    assert len(RECIPES) >= 9
    assert ROOT / "README.md" in {block.page for block in RECIPES}


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_recipe_loads_without_a_warning(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples" / "even-arithmetic")  # where the method lies that a page names by its file
    registry.method_names()  # loads them all: what is loaded under the patch is lost with it
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    recipe, warnings = load_recipe(block.text, strict=True, trust_remote_code=True)
    assert warnings == ()
    assert recipe.models()


@pytest.mark.parametrize("line", command_lines())
def test_command_line_parses(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "mergekit-yaml":
        words = ["merge", *words]
    command: click.Command = app.commands[words[0]]
    while isinstance(command, click.Group) and words[1:]:
        words = words[1:]
        command = command.commands[words[0]]
    if words[1:]:  # else the page speaks of the command and shows no call
        assert command.make_context("cuvee", words[1:]).params


def test_a_wrong_command_line_would_not_parse() -> None:
    with pytest.raises(click.UsageError):
        app.commands["merge"].make_context("cuvee", ["recipe.yml", "out", "--no-such-option"])


@pytest.mark.parametrize(("recipe", "error"), REFUSED, ids=lambda block: str(block.line))
def test_error_is_what_the_page_shows(
    recipe: Block, error: Block, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "family").symlink_to(family()["base"].parent)
    (here / "recipe.yml").write_text(recipe.text, encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["merge", "recipe.yml", "out"])
    assert left.value.code == 2
    assert capsys.readouterr().err == error.text
    assert sorted(path.name for path in here.iterdir()) == ["family", "recipe.yml"]


def test_the_errors_page_has_its_examples() -> None:
    assert len(REFUSED) >= 7
    assert all(error.language == "text" for _, error in REFUSED)
