"""The language of values: hand-computed numbers, and `numpy.interp` as the oracle of gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.errors import RecipeError
from cuvee.methods.spec import REQUIRED, Parameter
from cuvee.recipe.language import parse_value


def parameter(kind, choices=()):
    return Parameter("p", "p", kind, per_model=False, default=REQUIRED, choices=choices)


def value(data, kind=None, t=0.0, tensor="model.layers.0.mlp.up_proj.weight", choices=()):
    return parse_value(data, parameter(kind, choices) if kind else None).at(t, tensor)


def test_gradients_are_straight_between_equally_distant_knots():
    knots = [0, 10, 20.5]
    found = [value(knots, float, t) for t in (0, 0.25, 1 / 3, 0.5, 2 / 3, 1)]
    assert found == pytest.approx([0, 5, 20 / 3, 10, 13.5, 20.5], rel=1e-15)


def test_ends_are_exact():
    assert value([0.1, 0.7, 0.3], float, 0.0) == 0.1
    assert value([0.1, 0.7, 0.3], float, 1.0) == 0.3
    assert value([0.1, 0.7, 0.3], float, 0.5) == 0.7
    assert value([0.25], float, 0.9) == 0.25


numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=2, max_size=9), st.floats(0, 1))
def test_gradients_agree_with_numpy(knots, t):
    expected = np.interp(t, np.linspace(0, 1, len(knots)), knots)
    assert value(knots, float, t) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("t", "expected"), [(0, "a"), (0.49, "a"), (0.5, "b"), (0.99, "b"), (1, "c")])
def test_what_is_no_number_is_picked(t, expected):
    assert value(["a", "b", "c"], None, t) == expected
    assert value(["a", "b", "c"], str, t) == expected


def test_flags_written_as_words_are_steps():
    # What mergekit 0.1.5 does with these for a stack of four layers (observed): false for layer 2 alone.
    assert [value([True, False, True], bool, i / 3) for i in range(4)] == [True, True, False, True]
    assert value([True, 0], bool, 0.9) is True


def test_flags_written_as_numbers_are_interpolated_and_true_unless_zero():
    # mergekit 0.1.5, observed: [1, 0] over four layers is false for the last alone.
    assert [value([1, 0], bool, i / 3) for i in range(4)] == [True, True, True, False]


def test_whole_numbers_are_rounded_on_a_gradient():
    assert [value([10, 20], int, t) for t in (0, 0.26, 0.5, 1)] == [10, 13, 15, 20]
    assert type(value([10, 20], int, 0.26)) is int


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (1, float, 1.0),
        ("1e-5", float, 1e-5),
        (" 2 ", float, 2.0),
        ("-.5", None, -0.5),
        (3.0, int, 3),
        ("3", int, 3),
        (1, bool, True),
        (0.0, bool, False),
        ("False", bool, False),
        ("yes", bool, True),
        ("mean", str, "mean"),
        ("mean", None, "mean"),
        (True, None, True),
        (["1e-1", 0.3], float, 0.2),
    ],
)
def test_scalars_take_the_parameters_type(data, kind, expected):
    found = value(data, kind, 0.5)
    assert found == pytest.approx(expected) if isinstance(expected, float) else found == expected
    assert type(found) is type(expected)


LIST = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.3}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [("l.0.self_attn.mlp", 0.25), ("l.0.mlp.down", 0.3), ("norm", 0.5), ("", 0.5)],
)
def test_the_first_filter_that_is_part_of_the_name_wins(tensor, expected):
    assert value(LIST, float, 0.25, tensor) == expected


def test_filters_may_match_nothing_everything_or_stand_alone():
    assert value(LIST[:2], float, 0.25, "norm") is None
    assert value({"filter": "mlp", "value": 2}, float, tensor="x.mlp.y") == 2
    assert value({"filter": "mlp", "value": 2}, float, tensor="x") is None
    assert value([{"filter": "*", "value": 1}, {"value": 2}], float, tensor="anything") == 1
    assert value([{"filter": None, "value": 1}], float, tensor="anything") == 1


def test_false_and_zero_are_values_not_absences():
    assert value([{"filter": "mlp", "value": False}, {"value": True}], bool, tensor="mlp") is False
    assert value([{"filter": "mlp", "value": 0}, {"value": 1}], float, tensor="mlp") == 0


@pytest.mark.parametrize(
    ("data", "kind", "inside", "words"),
    [
        ("half", float, (), ["must be a number", "'half'"]),
        (True, float, (), ["must be a number", "true"]),
        (True, int, (), ["whole number"]),
        (2.5, int, (), ["whole number", "2.5"]),
        (0.5, bool, (), ["true or false"]),
        ("maybe", bool, (), ["true or false"]),
        (5, str, (), ["text"]),
        (float("nan"), float, (), ["not a finite number"]),
        (float("-inf"), None, (), ["not a finite number"]),
        ("1e999", float, (), ["not a finite number"]),
        (10**400, float, (), ["not a finite number"]),
        ("nan", float, (), ["must be a number"]),
        ("1_000", float, (), ["must be a number"]),
        ([], float, (), ["at least one value"]),
        ([0.1, "x"], float, (1,), ["must be a number", "'x'"]),
        ([0.1, None], float, (1,), ["must be a number", "nothing"]),
        ([[0.1]], float, (0,), ["flat list"]),
        ([{"filter": "a", "value": 1}, 0.5], float, (1,), ["among filters", "- value: 0.5"]),
        ([{"filter": "a"}], float, (0,), ["no value"]),
        ({"filter": "a", "value": {"filter": "b", "value": 1}}, float, ("value",), ["must be a number"]),
        ([{"filter": 3, "value": 1}], float, (0, "filter"), ["must be text", "quote"]),
        ([{"filter": ["a"], "value": 1}], float, (0, "filter"), ["must be text", "one entry for each"]),
        ([{"filter": "a", "value": [1, "b"]}], float, (0, "value", 1), ["must be a number", "'b'"]),
        ({}, float, (), ["no value"]),
        (None, float, (), ["must be a number", "nothing"]),
    ],
)
def test_what_is_no_value_is_refused_and_located(data, kind, inside, words):
    with pytest.raises(RecipeError) as refusal:
        value(data, kind)
    assert refusal.value.inside == inside
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_choices_are_checked():
    assert value("b", str, choices=("a", "b")) == "b"
    with pytest.raises(RecipeError, match="p cannot be 'c'") as refusal:
        value(["a", "c"], str, choices=("a", "b"))
    assert refusal.value.expected == "one of a, b"
    assert refusal.value.inside == (1,)


def test_a_word_may_stand_where_the_parameter_has_one():
    flag = Parameter("rescale", "rescale", bool, per_model=False, default=True, words=("expected",))
    found = [parse_value(data, flag).at(0.6, "mlp") for data in ("expected", True, "off", [False, "expected", True])]
    assert found == ["expected", True, False, "expected"]
    assert parse_value({"filter": "mlp", "value": "expected"}, flag).at(0.0, "mlp") == "expected"
    with pytest.raises(RecipeError, match="rescale must be true or false or expected"):
        parse_value("expect", flag)
