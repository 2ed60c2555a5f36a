"""Model references: every spelling of the same model gives the same reference."""

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.notes import Notes
from cuvee.recipe.references import read_reference
from cuvee.recipe.yaml_marks import Marks
from cuvee.tensors.reference import ModelRef

FULL = ModelRef("org/model", "v1", (ModelRef("org/lora", "abc"),))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("./here", ModelRef("./here")),
        ("org/model@v1+org/lora@abc", FULL),
        ({"model": {"path": "org/model", "revision": "v1"}, "lora": {"path": "org/lora", "revision": "abc"}}, FULL),
        ({"model": "org/model@v1", "lora": "org/lora@abc"}, FULL),
        (
            {
                "model": {"path": "org/model", "revision": "v1"},
                "lora": {"model": {"path": "org/lora", "revision": "abc"}},
            },
            FULL,
        ),
        ({"model": {"path": "org/model", "revision": None}, "lora": None}, ModelRef("org/model")),
        ({"path": "a+b@c"}, ModelRef("a+b@c")),
    ],
)
def test_spellings(data, expected):
    notes = Notes(Marks("r"))
    assert read_reference(data, ("base_model",), notes) == (expected, None)
    assert notes.oddities == []


def test_architecture_is_kept():
    model, architecture = read_reference(
        {"model": "a", "override_architecture": "LlamaForCausalLM"}, (), Notes(Marks("r"))
    )
    assert (model, architecture) == (ModelRef("a"), "LlamaForCausalLM")


@pytest.mark.parametrize(
    "data",
    [
        "",
        " ",
        "@main",
        "a@",
        "a+",
        "a+@b",
        5,
        ["a"],
        {},
        {"lora": "x"},
        {"path": ""},
        {"path": 5},
        {"model": {}},
        "a\0",
    ],
)
def test_what_names_no_model_is_refused(data):
    with pytest.raises(RecipeError) as refusal:
        read_reference(data, ("base_model",), Notes(Marks("r")))
    assert refusal.value.path.startswith("base_model")


def test_unknown_keys_are_noted():
    notes = Notes(Marks("r"))
    read_reference({"model": {"path": "a", "revison": "b"}}, ("m",), notes)
    assert notes.warnings(strict=False) == ("r (m.model.revison): unknown key 'revison'; did you mean revision?",)
