"""Recipes from files, text and Python data; and that no text leads to anything but a recipe or a RecipeError."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import RecipeError
from cuvee.methods.registry import get_method
from cuvee.recipe.keys import KEYS
from cuvee.recipe.load import load_recipe, recipe_to_yaml
from cuvee.recipe.values import resolve_parameters
from cuvee.tensors.reference import ModelRef

TEXT = """\
# kept
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
dtype: torch.bfloat16
out_dtype: float32
"""
FLOW = (
    "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}], dtype: torch.bfloat16, out_dtype: float32}"
)


def test_text_path_and_mapping_mean_the_same(tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text(TEXT)
    recipes = [
        load_recipe(source)[0]
        for source in (
            TEXT,
            file,
            str(file),
            yaml.safe_load(TEXT),
            FLOW,
        )
    ]
    for recipe in recipes:
        assert (recipe.method, recipe.dtype, recipe.out_dtype) == ("linear", "BF16", "F32")
        assert recipe.raw == yaml.safe_load(TEXT)
        assert recipe.models() == (ModelRef("a"),)
    assert [recipe.file for recipe in recipes] == ["recipe", str(file), str(file), "recipe", "recipe"]


def test_the_text_is_kept_or_made(tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert recipe_to_yaml(load_recipe(TEXT)[0]) == TEXT
    assert load_recipe(file)[0].raw == yaml.safe_load(TEXT)
    assert yaml.safe_load(recipe_to_yaml(load_recipe(yaml.safe_load(TEXT))[0])) == yaml.safe_load(TEXT)


def test_a_recipe_is_given_back_and_may_be_checked_strictly():
    recipe, warnings = load_recipe(TEXT + "colour: red\n")
    again, warnings_again = load_recipe(recipe)
    assert again is recipe
    assert warnings == warnings_again
    assert warnings[0].startswith("recipe:8 (colour): unknown key 'colour'; known keys here: merge_method, models, ")
    with pytest.raises(RecipeError, match="unknown key 'colour'"):
        load_recipe(recipe, strict=True)


def test_python_values_become_plain_data():
    recipe, _ = load_recipe(
        {
            "merge_method": "linear",
            "models": ({"model": Path("a"), "parameters": {"weight": np.float32(0.5)}}, {"model": ModelRef("b", "v")}),
            "parameters": {"weight": (np.int64(1), 2.0), "normalize": False},
        }
    )
    assert recipe.raw["models"] == [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b@v"}]
    assert recipe.raw["parameters"] == {"weight": [1, 2.0], "normalize": False}
    json.dumps(recipe.raw)


def test_what_a_recipe_cannot_hold_is_located():
    with pytest.raises(RecipeError, match="cannot hold a set") as refusal:
        load_recipe({"merge_method": "linear", "models": [{"model": {"a"}}]})
    assert refusal.value.path == "models[0].model"
    endless: dict = {}
    endless["models"] = endless
    with pytest.raises(RecipeError, match="deeper than 64"):
        load_recipe(endless)


@pytest.mark.parametrize(
    ("name", "code"),
    [("float16", "F16"), ("torch.float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32"), ("float64", "F64"),
     ("int64", "I64"), ("null", None)],
)  # fmt: skip
def test_dtypes(name, code):
    assert load_recipe(TEXT.replace("torch.bfloat16", name))[0].dtype == code


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (TEXT.replace("torch.bfloat16", "bfloat"), 6, ["unknown dtype 'bfloat'", "did you mean bfloat16?"]),
        (TEXT.replace("torch.bfloat16", "bf16"), 6, ["did you mean bfloat16?"]),
        (TEXT.replace("bfloat16", "float8_e4m3fn"), 6, ["is read, not written", "float16, float32", "into bfloat16;"]),
        (TEXT.replace("float32", "fp8"), 7, ["the out_dtype 'fp8' is read, not written"]),
        (TEXT.replace("torch.bfloat16", "16"), 6, ["dtype must be text"]),
        (TEXT.replace("float32", "flaot32"), 7, ["unknown out_dtype", "float32?"]),
        (TEXT.replace(" linear", " dare-ties"), 2, ["unknown merge method 'dare-ties'", "did you mean 'dare_ties'?"]),
        (TEXT.replace(" linear", " [linear]"), 2, ["merge_method must be text"]),
        (TEXT.replace("merge_method", "method"), 2, ["rename method to merge_method"]),
        (TEXT.replace("merge_method: linear", "x: 1"), 2, ["names no merge method", "one of linear, "]),
        (TEXT.replace("weight: 1", "weight: half"), 5, ["weight must be a number", "'half'"]),
        (TEXT.replace("weight: 1", "weight: true"), 5, ["weight must be a number", "true"]),
        (TEXT.replace("weight: 1", "weight: .inf"), 5, ["finite"]),
        (TEXT.replace("weight: 1", "weight: [0,\n 1, [2]]"), 6, ["flat list"]),
        (TEXT.replace("weight: 1", "weight: {filter: x}"), 5, ["no value"]),
        ("# nothing\n", None, ["empty"]),
        ("- merge_method: linear\n- models: []\n", 1, ["must be a mapping", "start with"]),
        ("a: b\na: c\n", 2, ["twice"]),
    ],
)
def test_bad_input_has_its_line(text, line, words):
    with pytest.raises(RecipeError) as refusal:
        load_recipe(text)
    assert refusal.value.line == line
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "recipe.yml").write_text(TEXT)
    (tmp_path / "latin.yml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    (tmp_path / "huge.yml").write_bytes(b"#" * ((16 << 20) + 1))
    cases = {
        tmp_path / "recipy.yml": f"did you mean {tmp_path / 'recipe.yml'}?",
        tmp_path / "no" / "recipe.yml": f"there is no directory {tmp_path / 'no'}",
        tmp_path / "empty.txt": "no such recipe file",
        tmp_path: "directory",
        tmp_path / "latin.yml": "latin.yml:2",
        tmp_path / "huge.yml": "too large",
        Path("x" * 5000): "cannot be read",
        Path("a\0b"): "cannot be read",
    }
    for path, words in cases.items():
        with pytest.raises(RecipeError) as refusal:
            load_recipe(path)
        assert words in str(refusal.value)


def test_a_method_from_a_file_that_is_not_there_is_a_recipe_error():
    with pytest.raises(RecipeError) as refusal:
        load_recipe(TEXT.replace("linear", "mine.py:merge"))
    assert refusal.value.line == 2


WORDS = st.sampled_from(
    [
        *sorted({word for keys in KEYS.values() for word in keys}),
        "linear",
        "ties",
        "slerp",
        "weight",
        "t",
        "density",
        "filter",
        "value",
        "bfloat16",
        "mlp",
        "a",
        "1e-5",
        "*",
        "",
        "path",
        "revision",
        "lora",
        "kind",
        "token",
    ]
)
SCALARS = WORDS | st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=4)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | SCALARS, inner, max_size=4),
    max_leaves=25,
)


def model(body):
    return st.fixed_dictionaries({"model": st.sampled_from("ab") | TREES}, optional={"parameters": TREES, **body})


RECIPES = st.fixed_dictionaries(
    {"merge_method": st.sampled_from(["linear", "ties", "slerp", "passthrough"]) | SCALARS},
    optional={
        "models": st.lists(model({"weight": TREES}), max_size=3) | TREES,
        "slices": st.lists(
            st.fixed_dictionaries({"sources": st.lists(model({"layer_range": TREES}), max_size=2)}), max_size=2
        ),
        "modules": TREES,
        "base_model": st.sampled_from("ab") | TREES,
        "parameters": st.dictionaries(WORDS, TREES, max_size=3) | TREES,
        "dtype": SCALARS,
        "tokenizer": TREES,
        "only": TREES,
    },
)


def loads_or_refuses(source):
    """Whether it loads; parameters resolve or refuse as well."""
    try:
        recipe, _ = load_recipe(source)
    except RecipeError:
        return False
    for module in recipe.modules:
        for piece in module.slices:
            with contextlib.suppress(RecipeError):
                resolve_parameters(recipe, module, piece, get_method(recipe.method), t=0.3, tensor="a.mlp.weight")
    return True


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text("{}[]:,&*!|>-?#%@'\"\\ \n\tab1.<=~_"))
def test_no_text_leads_to_anything_but_success_or_a_recipe_error(text):
    loads_or_refuses("# text\n" + text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_lead_to_anything_but_success_or_a_recipe_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzz.yml"
    file.write_bytes(data)
    loads_or_refuses(file)


@settings(max_examples=300, deadline=None)
@given(RECIPES | TREES)
def test_no_tree_leads_to_anything_but_success_or_a_recipe_error(tree):
    loads_or_refuses("# text\n" + yaml.safe_dump(tree, allow_unicode=True))
    if isinstance(tree, dict):
        loads_or_refuses(tree)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, len(TEXT)),
    st.integers(0, 3),
    st.sampled_from(["", " ", "  ", "\n", "\t", "-", ":", "- ", "[", "&a ", "\x85"]),
)
def test_slips_of_the_finger_lead_to_success_or_a_recipe_error(at, cut, typed):
    loads_or_refuses("# text\n" + TEXT[:at] + typed + TEXT[at + cut :])
