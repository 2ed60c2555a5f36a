from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.errors import CheckpointError
from cuvee.publish.config_edit import REMOVE, edit_json, parse_object

CONFIG = """{
  "architectures": ["LlamaForCausalLM"],
  "rms_norm_eps": 1e-05,   "rope_theta": 500000.0,
  "text_config" : {
    "num_hidden_layers": 32,
    "name": "caf\\u00e9"
  },
  "empty": {}
}
"""

SPACES = st.text(" \t\n\r", max_size=4)
KEYS = st.sampled_from(["a", "b", "c", 'q"uote', "back\\slash", "{", "é\n", ""])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just('",}]:{"')
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
LAYOUTS = st.sampled_from([{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def edited(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any] | None:
    """The dict edit that `edit_json` must agree with; None where the path leads through something else."""
    result = copy.deepcopy(table)
    place: Any = result
    for key in path[:-1]:
        if key not in place:
            if value is REMOVE:
                return result
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            return None
    if value is REMOVE:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return result


def exact(value: Any) -> str:
    """Text that tells apart what == does not (1, 1.0, True), and the order of keys."""
    return json.dumps(value)


@given(table=OBJECTS, layout=LAYOUTS, path=PATHS, value=VALUES | st.just(REMOVE))
def test_an_edit_of_the_text_is_the_edit_of_the_dict(
    table: dict[str, Any], layout: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    text = json.dumps(table, **layout)
    expected = edited(table, path, value)
    if expected is None:
        with pytest.raises(CheckpointError, match="is not an object"):
            edit_json(text, {path: value})
    else:
        assert exact(json.loads(edit_json(text, {path: value}))) == exact(expected)


def render(value: Any, data: st.DataObject) -> str:
    """`value` as JSON with whitespace wherever the grammar lets it be."""

    def space() -> str:
        return data.draw(SPACES)

    if isinstance(value, dict):
        members = [f"{space()}{json.dumps(k)}{space()}:{space()}{render(v, data)}{space()}" for k, v in value.items()]
        return "{" + (",".join(members) or space()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(f"{space()}{render(v, data)}{space()}" for v in value) + "]"
    return json.dumps(value, ensure_ascii=data.draw(st.booleans()))


@given(table=OBJECTS, path=PATHS, value=LEAVES, data=st.data())
def test_only_the_value_changes(table: dict[str, Any], path: tuple[str, ...], value: Any, data: st.DataObject) -> None:
    marked = edited(table, path, "@@HERE@@")
    if marked is None:
        return
    text = data.draw(SPACES) + render(marked, data) + data.draw(SPACES)
    before, here, after = text.partition('"@@HERE@@"')
    assert here
    assert edit_json(text, {path: value}) == before + json.dumps(value) + after


def test_values_are_replaced_in_place() -> None:
    result = edit_json(CONFIG, {("text_config", "num_hidden_layers"): 40, ("rope_theta",): 1e6})
    expected = CONFIG.replace('"num_hidden_layers": 32', '"num_hidden_layers": 40').replace("500000.0", "1000000.0")
    assert result == expected


def test_a_value_that_is_right_keeps_its_spelling() -> None:
    changes = {("rms_norm_eps",): 0.00001, ("text_config", "name"): "café", ("architectures",): ["LlamaForCausalLM"]}
    assert edit_json(CONFIG, changes) == CONFIG
    assert edit_json('{"a": 1}', {("a",): 1.0}) == '{"a": 1.0}'
    assert edit_json('{"a": 1}', {("a",): True}) == '{"a": true}'


def test_a_missing_key_is_added_last_with_its_objects_spacing() -> None:
    assert edit_json(CONFIG, {("text_config", "dtype"): "bfloat16"}) == CONFIG.replace(
        '"caf\\u00e9"\n', '"caf\\u00e9",\n    "dtype": "bfloat16"\n'
    )
    assert edit_json(CONFIG, {("new",): 1}) == CONFIG.replace('"empty": {}\n', '"empty": {},\n  "new": 1\n')
    assert edit_json(CONFIG, {("empty", "x"): 1}) == CONFIG.replace("{}", '{"x": 1}')
    assert edit_json('{"a":1}', {("b",): 2, ("c",): 3}) == '{"a":1,"b":2,"c":3}'
    assert edit_json('{\r\n "a": 1\r\n}', {("b",): [2]}) == '{\r\n "a": 1,\r\n "b": [\r\n  2\r\n ]\r\n}'


def test_missing_parents_are_added_with_their_key() -> None:
    assert edit_json(CONFIG, {("deep", "er"): 1}) == CONFIG.replace(
        '"empty": {}\n', '"empty": {},\n  "deep": {\n    "er": 1\n  }\n'
    )


def test_a_list_is_laid_out_as_its_surroundings() -> None:
    assert edit_json(CONFIG, {("text_config", "num_hidden_layers"): [1, 2]}) == CONFIG.replace(
        "32", "[\n      1,\n      2\n    ]"
    )
    assert edit_json('{"a": 0}', {("a",): [1, 2]}) == '{"a": [1, 2]}'


def test_removed_keys_take_one_comma_along() -> None:
    text = '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}'
    assert edit_json(text, {("a",): REMOVE}) == '{\n  "b": 2,\n  "c": 3\n}'
    assert edit_json(text, {("b",): REMOVE}) == '{\n  "a": 1,\n  "c": 3\n}'
    assert edit_json(text, {("c",): REMOVE}) == '{\n  "a": 1,\n  "b": 2\n}'
    assert edit_json('{"a": 1}', {("a",): REMOVE}) == "{}"
    assert edit_json(text, {("z",): REMOVE, ("z", "y"): REMOVE}) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "key 'c' is there twice"),
        ('{"a": 1', "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_what_is_not_a_json_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        edit_json(text, {})
    with pytest.raises(CheckpointError, match=message):
        parse_object(text)


def test_a_path_through_a_value_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"cannot set rope_theta\.x: rope_theta is not an object") as caught:
        edit_json(CONFIG, {("rope_theta", "x"): 1})
    assert caught.value.found == "500000.0"
