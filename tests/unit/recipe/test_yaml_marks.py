"""YAML with line numbers: against `yaml.safe_load` for the data, by hand for the lines."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cuvee.errors import RecipeError
from cuvee.recipe.yaml_marks import Marks, load_yaml, path_text

TEXT = """\
# a comment
merge_method: ties
models:
  - model: a
    parameters:
      weight: 0.5

  - model: b
    parameters: {density: 1,
      weight: [0, 1]}
"""


def test_every_value_has_the_line_of_its_key_or_dash():
    data, marks = load_yaml(TEXT, "r.yml")
    assert data == yaml.safe_load(TEXT)
    expected = {
        ("merge_method",): 2,
        ("models",): 3,
        ("models", 0): 4,
        ("models", 0, "model"): 4,
        ("models", 0, "parameters"): 5,
        ("models", 0, "parameters", "weight"): 6,
        ("models", 1): 8,
        ("models", 1, "parameters"): 9,
        ("models", 1, "parameters", "density"): 9,
        ("models", 1, "parameters", "weight"): 10,
        ("models", 1, "parameters", "weight", 1): 10,
    }
    assert {path: marks.line(path) for path in expected} == expected


def test_a_path_the_file_lacks_has_the_line_of_what_is_around_it():
    _, marks = load_yaml(TEXT, "r.yml")
    assert marks.line(("models", 1, "nothing", 3)) == 8
    assert marks.where(("models", 0, "parameters", "weight")) == "r.yml:6 (models[0].parameters.weight)"


def test_recipes_without_a_file_have_places_without_lines():
    marks = Marks("recipe")
    assert marks.line(("models",)) is None
    assert marks.where(("models", 2)) == "recipe (models[2])"
    assert marks.where(()) == "recipe"
    assert path_text(("a", 0, 1, "b")) == "a[0][1].b"


@pytest.mark.parametrize(
    "text",
    [
        "[1, 0x1F, 0b11, 017, 1_000, 1:30, -4]",
        "[1.5, 1e5, 1.0e+5, .5, -.inf, 1_0.5]",
        "[true, No, on, OFF, ~, null, '', \"x\", '5', !!str 5, !!int '7', 1e-5]",
        "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [{p: 7}, *x]}",
        "a: |\n  two\n  lines\nb: >\n  one\n  line\n",
        "? a\n: 1\n2: x\ntrue: y\n",
        "",
        "just text",
        "a:\n- 1\n- [2, {b: 3}]\n",
    ],
)
def test_data_is_what_safe_load_reads(text):
    assert load_yaml(text, "r")[0] == yaml.safe_load(text)


def test_dates_and_exponents_without_a_point_stay_text():
    assert load_yaml("[2024-01-31, 1e-5]", "r")[0] == ["2024-01-31", "1e-5"]


def test_merged_keys_know_the_lines_they_were_written_in():
    data, marks = load_yaml("a: &x\n  p: 1\nb:\n  <<: *x\n  q: 2\n", "r")
    assert data["b"] == {"p": 1, "q": 2}
    assert marks.line(("b", "p")) == 2
    assert marks.line(("b", "q")) == 5


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, ["'a' is given twice", "lines 1 and 3"]),
        ("x:\n  w: 1\n  v: 2\n  w: 3\n", 4, ["'w' is given twice", "lines 2 and 4"]),
        ("a: 1\nb: !!python/object:os.system x\n", 2, ["!!python/object:os.system", "quote"]),
        ("a: !mine x", 1, ["!mine"]),
        ("a: !!set {x}", 1, ["!!set"]),
        (LAUGHS, None, ["aliases"]),
        ("&a [*a]", 1, ["aliases"]),
        ("[" * 65 + "]" * 65, 1, ["deeper than 64"]),
        ("a:\n " + "[" * 400 + "]" * 400, 2, ["deeper than 64"]),
        ("[" + "x," * 100_001 + "]", 1, ["100,000"]),
        ("a: b: c", 1, ["not YAML", "': '"]),
        ("a: 1\n b: 2\n", 2, ["not YAML", "indentation"]),
        ("a:\n\t- 1\n", 2, ["tabs"]),
        ("a: [1, 2\nb: 3\n", 2, ["not YAML"]),
        ("a: *nowhere", 1, ["alias", "quote"]),
        ("a: 1\n---\nb: 2\n", 2, ["one file holds one recipe"]),
        ("[1]: x", 1, ["single word"]),
        ("a: !!int x", 1, ["'x' is no int"]),
        ("a: !!bool maybe", 1, ["no bool"]),
        ("<<: [1]", 1, ["mappings only"]),
        ("a: 1\nb: " + "9" * 5000, 2, ["too long", "5000"]),
        ("a: 1\nb: \ud800", 2, ["not Unicode"]),
    ],
)
def test_what_no_recipe_needs_is_refused_with_its_line(text, line, words):
    with pytest.raises(RecipeError) as refusal:
        load_yaml(text, "r.yml")
    message = str(refusal.value)
    assert all(word in message for word in words), message
    if line is not None:
        assert refusal.value.line == line
        assert f"r.yml:{line}" in message


def test_control_characters_and_huge_files_are_refused():
    with pytest.raises(RecipeError, match="not YAML"):
        load_yaml("a: \x00", "r.yml")
    with pytest.raises(RecipeError, match="too large"):
        load_yaml("#" * (16 << 20) + "\n", "r.yml")


def test_long_texts_multiplied_by_aliases_are_refused():
    text = f"a: &a {'x' * 1_000_000}\nb: [{', '.join(['*a'] * 20)}]\n"
    with pytest.raises(RecipeError, match="aliases"):
        load_yaml(text, "r.yml")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
def test_what_pyyaml_writes_comes_back(data):
    assert load_yaml(yaml.safe_dump(data), "r")[0] == data
