from __future__ import annotations

import pytest

from cuvee.tensors.reference import ModelRef


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ModelRef("org/model")),
        (" ./dir ", ModelRef("./dir")),
        ("org/model@v1.0", ModelRef("org/model", "v1.0")),
        ("org/model@refs/pr/3", ModelRef("org/model", "refs/pr/3")),
        ("a+b", ModelRef("a", None, (ModelRef("b"),))),
        ("a@x+b@y+c", ModelRef("a", "x", (ModelRef("b", "y"), ModelRef("c")))),
    ],
)
def test_references_are_taken_apart_and_put_together(text: str, expected: ModelRef) -> None:
    assert ModelRef.parse(text) == expected
    assert str(expected) == text.strip()
