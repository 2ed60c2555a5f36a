"""Pages made from code are what the code says now."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cuvee.methods.registry import get_method, method_names
from support.pages import DOCS

GENERATE = runpy.run_path(str(DOCS / "generate.py"))


PICTURES = runpy.run_path(str(DOCS / "pictures.py"))
MADE = GENERATE["pages"]()


@pytest.mark.parametrize("name", MADE)
def test_page_is_not_stale(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == MADE[name], "run `make docs`"


def test_there_are_no_pages_of_methods_that_are_gone() -> None:
    assert {f"methods/{file.name}" for file in (DOCS / "methods").iterdir()} == {n for n in MADE if "/" in n}
    assert {f"methods/{name}.md" for name in method_names() if _own(name)} <= set(MADE)


def _own(name: str) -> bool:
    return get_method(name).apply.__module__.startswith("cuvee.methods.")


def test_every_option_of_a_merge_is_told_once() -> None:
    lines = GENERATE["pages"]()["commands.md"].splitlines()
    rows = [line for line in lines if "`--out-shard-size SIZE`" in line]
    assert rows == ["| `--out-shard-size SIZE` | Largest size of an output file. | `5B` |"]


def test_a_method_has_its_formula_parameters_and_paper() -> None:
    ties = MADE["methods/ties.md"]
    assert "Takes a base model and 1 or more models." in ties
    assert "s = sign(sum_i" in ties
    assert "| `weight` | float, per model | required | Strength of this model's task vector. |" in ties
    assert "| `lambda` | float | `1.0` | Scales the merged task vector. |" in ties
    assert "## When to use it\n\nUse it for three and more models" in ties
    assert "arXiv:2306.01708" in ties


@pytest.mark.parametrize("name", [name for name in MADE if name.endswith(".md") and "/" in name])
def test_every_method_says_when_to_use_it_and_shows_itself(name: str) -> None:
    page = MADE[name]
    formula, use = page.split("## Formula\n")[1].split("## When to use it\n")
    assert len(formula.split()) > 12
    assert use.strip().startswith("Use it ")
    picture = MADE[name.replace(".md", ".svg")]
    drawn = ElementTree.fromstring(picture)
    assert len(drawn) > 8
    assert f"({Path(name).stem}.svg)" in page


def test_pictures_are_computed_with_the_methods() -> None:
    """Halfway on a line and on an arc between the two models of the pictures."""
    first, second = PICTURES["_PLANE"]
    middle = PICTURES["_merged"](get_method("linear"), (first, second), weight=(0.5, 0.5))
    assert middle == pytest.approx((first + second) / 2)
    arc = PICTURES["_merged"](get_method("slerp"), (first, second), t=0.5)
    assert arc == pytest.approx((first + second) * (arc[0] / (first + second)[0]))
    assert arc[0] > middle[0] * 1.05
    kept = PICTURES["_merged"](get_method("ties"), PICTURES["_ELEMENTS"])
    assert (kept == 0).nonzero()[0].tolist() == [3, 4, 9, 11], "where neither model's change is among its eight largest"


def test_check_tells_a_stale_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main = GENERATE["main"]
    assert main(["--check"]) == 0
    monkeypatch.setitem(main.__globals__, "_METHODS", "# Other\n")
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == "stale: docs/methods.md; run `make docs`\n"
