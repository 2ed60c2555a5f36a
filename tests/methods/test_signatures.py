"""The door methods come in by: a signature says what recipes may set; one that cannot be read is refused at import."""

from __future__ import annotations

import sys
from typing import Any, Literal

import pytest

from cuvee.errors import MethodError
from cuvee.methods import registry
from cuvee.methods.registry import get_method, merge_method, method_names
from cuvee.methods.spec import REQUIRED, Deltas, PerModel, Prepared, Weights
from cuvee.numerics.block import Block


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    method_names()
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))


def prepared(scan: Any, *, density: Any) -> int:
    return len(density)


def test_a_signature_is_read_in_full() -> None:
    @merge_method("sample", base="required", models=(1, 4), scope="rows", prepare=prepared, reference="A paper")
    def sample(
        deltas: Deltas,
        found: Prepared[int],
        *,
        weight: PerModel[float],
        density: PerModel[float] = (0.5,),
        lambda_: float = 2.0,
        mode: Literal["mean", "sum"] = "mean",
        limit: int | None = None,
        flag: bool = True,
        rescale: bool | Literal["expected"] = True,
    ) -> int:
        """Does something.

        More about it.

        Args:
            weight: How much of it,
                told over two lines.
            lambda_: A scale.

        """
        return found

    spec = get_method("sample")
    assert sample(Block(()), 3, weight=(1,)) == 3, "the function itself is given back"
    assert (spec.wants, spec.base, spec.min_models, spec.max_models) == ("deltas", "required", 1, 4)
    assert (spec.scope, spec.prepare_arguments, spec.takes_prepared) == ("rows", ("density",), True)
    assert (spec.summary, spec.reference, spec.base_is_input) == ("Does something.", "A paper", False)
    rows = [(p.name, p.argument, p.kind, p.per_model, p.default, p.choices) for p in spec.parameters.values()]
    assert rows == [
        ("weight", "weight", float, True, REQUIRED, ()),
        ("density", "density", float, True, 0.5, ()),
        ("lambda", "lambda_", float, False, 2.0, ()),
        ("mode", "mode", str, False, "mean", ("mean", "sum")),
        ("limit", "limit", int, False, None, ()),
        ("flag", "flag", bool, False, True, ()),
        ("rescale", "rescale", bool, False, True, ()),
        ("lines", "lines", float, False, 1.0, ()),
        ("match_norm", "match_norm", bool, False, False, ()),
    ], "stages follow every method that merges deltas from a base"
    assert [name for name, p in spec.parameters.items() if p.required] == ["weight"]
    assert {name: p.words for name, p in spec.parameters.items() if p.words} == {"rescale": ("expected",)}
    assert spec.parameters["weight"].help == "How much of it, told over two lines."
    assert spec.parameters["lambda"].help == "A scale."


def test_arguments_of_unknown_types_are_refused() -> None:
    with pytest.raises(MethodError, match="cannot read the type of argument 'table'") as caught:

        @merge_method("odd", base="none", models=(1, 1))
        def odd(weights: Weights, *, table: dict[str, float]) -> None: ...

    assert (caught.value.method, caught.value.parameter) == ("odd", "table")
    with pytest.raises(MethodError, match="cannot read the type"):

        @merge_method("odd", base="none", models=(1, 1))
        def either(weights: Weights, *, value: int | str) -> None: ...


def test_a_method_must_say_what_it_takes() -> None:
    with pytest.raises(MethodError, match="does not say what it takes"):

        @merge_method("odd", base="none", models=(1, 1))
        def odd(*, t: float) -> None: ...


def test_prepare_and_its_result_come_together() -> None:
    with pytest.raises(MethodError, match="both `prepare=` and a Prepared argument"):

        @merge_method("odd", base="none", models=(1, 1), prepare=prepared)
        def without(weights: Weights, *, density: float) -> None: ...

    with pytest.raises(MethodError, match="both `prepare=` and a Prepared argument"):

        @merge_method("odd", base="none", models=(1, 1))
        def alone(weights: Weights, found: Prepared[int]) -> None: ...

    with pytest.raises(MethodError, match="parameters the method does not have") as caught:

        @merge_method("odd", base="none", models=(1, 1), prepare=prepared)
        def lacks(weights: Weights, found: Prepared[int], *, t: float) -> None: ...

    assert caught.value.found == "density"


def test_a_name_belongs_to_one_module() -> None:
    def linear(weights: Weights) -> None: ...

    with pytest.raises(MethodError, match="two merge methods are called 'linear'") as caught:
        merge_method("linear", base="none", models=(1, 1))(linear)
    assert "cuvee.methods.linear" in (caught.value.found or "")


def test_unknown_methods_are_refused_with_the_nearest() -> None:
    with pytest.raises(MethodError, match="unknown merge method 'Dare-Tie'") as caught:
        get_method("Dare-Tie")
    assert caught.value.fix == "did you mean 'dare_ties'?"
    assert "task_arithmetic" in (caught.value.expected or "")
    with pytest.raises(MethodError) as caught:
        get_method("zzz")
    assert "cuvee methods" in (caught.value.fix or "")


def test_every_method_explains_itself_and_its_parameters() -> None:
    for name in method_names():
        spec = get_method(name)
        assert spec.summary.endswith("."), name
        assert all(parameter.help for parameter in spec.parameters.values()), name


def test_every_method_of_cuvee_has_its_home_in_the_table() -> None:
    registry._load_own()
    homes = {name: spec.apply.__module__ for name, spec in registry._specs.items()}
    own = {name: home for name, home in homes.items() if home.startswith("cuvee.methods.")}
    assert own == {name: registry._home(name) for name in registry._HOMES}


def test_the_name_of_a_method_of_cuvee_is_taken_before_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._load_own()
    home = registry._specs.pop("della").apply.__module__
    monkeypatch.delitem(sys.modules, home)
    with pytest.raises(MethodError, match="two merge methods are called 'della'"):

        @merge_method("della", base="none", models=(1, None))
        def della(weights: Weights) -> int:
            return len(weights)
