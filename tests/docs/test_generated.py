"""Pages made from code are what the code says now."""

from __future__ import annotations

import runpy

import pytest

from support.pages import DOCS

GENERATE = runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize("name", ["commands.md", "methods.md"])
def test_page_is_not_stale(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATE["pages"]()[name], "run `make docs`"


def test_every_option_of_a_merge_is_told_once() -> None:
    lines = GENERATE["pages"]()["commands.md"].splitlines()
    rows = [line for line in lines if "`--out-shard-size SIZE`" in line]
    assert rows == ["| `--out-shard-size SIZE` | Largest size of an output file. | `5B` |"]


def test_a_method_has_its_formula_parameters_and_paper() -> None:
    page = GENERATE["pages"]()["methods.md"]
    ties = page[page.index("\n## ties\n") :].split("\n## ")[1]
    assert "Takes a base model and 1 or more models." in ties
    assert "s = sign(sum_i" in ties
    assert "| `weight` | float, per model | required | Strength of this model's task vector. |" in ties
    assert "| `lambda` | float | `1.0` | Scales the merged task vector. |" in ties
    assert "arXiv:2306.01708" in ties


def test_check_tells_a_stale_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main = GENERATE["main"]
    assert main(["--check"]) == 0
    monkeypatch.setitem(main.__globals__, "_METHODS", "# Other\n")
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == "stale: docs/methods.md; run `make docs`\n"
