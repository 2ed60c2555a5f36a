from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import CheckpointError, CuveeError, PlanError, VocabularyError
from cuvee.planning import build
from cuvee.tensors.sources import stored_pieces
from support.checkpoints import DTYPES
from unit.planning.plans import Models, linear, llama, stack


@pytest.fixture
def models(tmp_path: Path) -> Models:
    found = Models(tmp_path)
    found.add("a")
    found.add("b")
    return found


def ties(*names: str, base: str, **more: Any) -> dict[str, Any]:
    entries = [{"model": name, "parameters": {"weight": 0.5, "density": 0.25}} for name in names]
    return {"merge_method": "ties", "base_model": base, "models": entries, **more}


def test_every_op_has_its_sources_and_arguments(models: Models) -> None:
    plan = models.plan(linear("a", "b", parameters={"normalize": False}))
    assert {op.name for op in plan.ops} == set(llama())
    for op in plan.ops:
        assert (op.shape, op.dtype, op.method, op.has_base, op.models) == ((4, 3), "F32", "linear", False, (0, 1))
        assert op.parameters == {"weight": (1, 2), "normalize": False}
        assert [Path(piece.file).parent.name for source in op.sources for piece in stored_pieces(source)] == ["a", "b"]
        assert [source.shape for source in op.sources] == [(4, 3)] * 2
        assert op.size == 12
        assert op.nbytes == 48
        assert op.bytes_read == 96
    assert (plan.bytes_read, plan.elements, plan.copied) == (15 * 96, 15 * 12, 0)
    assert plan.bytes_written == sum(shard.size for shard in plan.shards) > 15 * 48
    assert ([m.name for m in plan.models], plan.base, plan.seed, plan.method) == (["a", "b"], 0, 7, "linear")


def test_a_tensor_that_no_op_reads_and_no_rule_names_stops_the_merge(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last guard behind all rules: an outline that forgot a tensor is a fault, and never a merge without it."""
    whole = build.outline

    def forgetful(*arguments: Any, **settings: Any) -> build.Outline:
        planned = whole(*arguments, **settings)
        return replace(planned, tensors=tuple(each for each in planned.tensors if each.name != "model.norm.weight"))

    monkeypatch.setattr(build, "outline", forgetful)
    with pytest.raises(PlanError, match="2 tensors would be lost") as caught:
        models.plan(linear("a", "b"))
    assert caught.value.tensor == "model.norm.weight"
    assert "model.norm.weight" not in {op.name for op in models.plan(stack(("a", 0, 3))).ops}  # slices may drop


def test_the_base_comes_first_wherever_it_is_listed(models: Models) -> None:
    models.add("c")
    for recipe in (ties("a", "b", base="c"), ties("a", "c", "b", base="c"), ties("c", "a", "b", base="c")):
        plan = models.plan(recipe)
        for op in plan.ops:
            assert op.has_base
            assert [plan.models[i].name for i in op.models] == ["c", "a", "b"]
            assert op.parameters["weight"] == (0.5, 0.5)
        assert plan.models[plan.base].name == "c"


def test_gradients_follow_the_layers(models: Models) -> None:
    recipe = linear("a", "b")
    recipe["models"][0]["parameters"] = {"weight": [0, 1]}
    weights = {op.name: op.parameters["weight"] for op in models.plan(recipe).ops}
    assert [weights[f"model.layers.{i}.mlp.up.weight"][0] for i in range(3)] == [0, 0.5, 1]  # type: ignore[index]
    assert weights["lm_head.weight"] == (0, 2)


@pytest.mark.parametrize(
    ("inputs", "more", "written"),
    [
        (("BF16", "BF16"), {}, "BF16"),
        (("BF16", "F16"), {}, "F32"),
        (("F32", "F32"), {"dtype": "float16"}, "F16"),
        (("F32", "F32"), {"dtype": "float16", "out_dtype": "bfloat16"}, "BF16"),
        (("F16", "F32"), {"out_dtype": "float64"}, "F64"),
    ],
)
def test_the_dtype_written(inputs: tuple[str, str], more: dict[str, str], written: str, models: Models) -> None:
    for name, dtype in zip(("x", "y"), inputs, strict=True):
        models.add(name, llama(dtype=DTYPES[dtype]))
    assert {op.dtype for op in models.plan(linear("x", "y", **more)).ops} == {written}


def test_integers_are_copied_where_they_agree_in_kind(models: Models) -> None:
    for name, kind in (("x", np.int64), ("y", np.int64), ("z", np.int32)):
        models.add(name, llama() | {"model.positions": np.arange(6, dtype=kind)})
    plan = models.plan(linear("x", "y", dtype="bfloat16"))
    (op,) = [op for op in plan.ops if op.name == "model.positions"]
    assert (op.method, op.dtype, len(op.sources)) == (None, "I64", 2)
    assert plan.copied == 1
    with pytest.raises(CuveeError, match="non-float") as caught:
        models.plan(linear("x", "z"))
    assert isinstance(caught.value, CheckpointError)


def test_a_refused_dtype_is_told_with_its_tensor(models: Models) -> None:
    for name, kind in (("x", np.int64), ("z", np.int32)):
        models.add(name, llama() | {"model.positions": np.arange(6, dtype=kind)})
    with pytest.raises(CuveeError) as caught:
        models.plan(linear("x", "z"))
    assert "model.positions" in str(caught.value)


def test_weights_are_not_written_as_integers(models: Models) -> None:
    with pytest.raises(CuveeError, match=r"cannot be written as int64|int64"):
        models.plan(linear("a", "b", dtype="int64"))


def test_passthrough_copies_bytes_unless_it_changes_them(models: Models) -> None:
    assert {op.method for op in models.plan(stack(("a", 0, 3))).ops} == {None}
    assert {op.method for op in models.plan(stack(("a", 0, 3), dtype="float32")).ops} == {None}
    assert {op.method for op in models.plan(stack(("a", 0, 3), parameters={"scale": 1.0})).ops} == {None}
    assert {op.method for op in models.plan(stack(("a", 0, 3), dtype="float16")).ops} == {"passthrough"}
    assert {op.method for op in models.plan(stack(("a", 0, 3), parameters={"scale": 0.5})).ops} == {"passthrough"}
    assert {op.method for op in models.plan(stack(("a", 0, 3), parameters={"scale": 0.0})).ops} == {"passthrough"}


def test_layers_left_out_are_reported(models: Models) -> None:
    plan = models.plan(stack(("a", 0, 1), ("b", 2, 3)))
    dropped = {(plan.models[index].name, name) for index, name in plan.dropped}
    used = {
        (plan.models[op.models[0]].name, source) for op, source in zip(plan.ops, _sources(plan, models), strict=True)
    }
    everything = {(model, name) for model in ("a", "b") for name in llama()}
    assert dropped | used == everything
    assert not dropped & used
    assert ("a", "model.layers.1.mlp.up.weight") in dropped
    assert ("a", "lm_head.weight") in dropped


def _sources(plan: Any, models: Models) -> list[str]:
    """The input tensor each op reads, found again by its bytes: every tensor holds a number of its own."""
    names = list(llama())
    found = []
    for op in plan.ops:
        raw = Path(op.sources[0].file).read_bytes()[op.sources[0].offset :][:4]
        found.append(names[int(np.frombuffer(raw, np.float32)[0])])
    return found


def test_shapes_that_differ_are_refused_with_both_models(models: Models) -> None:
    models.add("wide", llama(width=5))
    with pytest.raises(VocabularyError, match=r"'lm_head.weight' has different shapes") as refused:
        models.plan(linear("a", "wide"))
    assert refused.value.expected == "[4, 3] as in a"
    assert refused.value.found == "[5, 3] in wide"
    assert "tokenizer: {source: base}" in (refused.value.fix or "")
    narrow = llama() | {"model.norm.weight": np.ones(7, np.float32)}
    models.add("narrow", narrow)
    with pytest.raises(PlanError, match=r"'model.norm.weight'") as caught:
        models.plan(linear("a", "narrow"))
    assert "tokenizer" not in (caught.value.fix or "")


def test_architectures_that_differ_are_refused_unless_allowed(models: Models) -> None:
    models.add("m", config={"architectures": ["MistralForCausalLM"], "num_hidden_layers": 3})
    with pytest.raises(PlanError, match="different architectures") as caught:
        models.plan(linear("a", "m"))
    assert caught.value.found == "a: LlamaForCausalLM; m: MistralForCausalLM"
    assert models.plan(linear("a", "m"), allow_crimes=True).ops
    for name, kind in (("p", "X"), ("q", "Y"), ("r", "Y")):
        models.add(name, config={"architectures": [kind], "model_type": "m" if name != "r" else "n"})
    assert models.plan(linear("p", "q")).ops  # one model under different heads
    with pytest.raises(PlanError, match="different architectures"):
        models.plan(linear("p", "r"))
    models.add("silent", config={})
    assert models.plan(linear("a", "silent")).ops


def test_configs_get_their_number_of_layers(models: Models) -> None:
    assert models.plan(stack(("a", 0, 3), ("b", 1, 3))).config_edits["num_hidden_layers"] == 5
    models.add("odd", config={"architectures": ["LlamaForCausalLM"], "depth_of_model": 3})
    with pytest.raises(PlanError, match="odd does not say that it has 3 layers"):
        models.plan(stack(("odd", 0, 2)))


def test_fingerprints_change_with_headers(models: Models) -> None:
    before = models.plan(linear("a", "b"))
    models.add("a", llama(dtype=np.float16))
    after = models.plan(linear("a", "b"))
    assert before.models[0].fingerprint != after.models[0].fingerprint
    assert before.models[1].fingerprint == after.models[1].fingerprint


def test_metadata_says_where_the_weights_come_from(models: Models) -> None:
    import json

    plan = models.plan(linear("a", "b"), max_shard_bytes=200)
    facts = json.loads(plan.shards[0].header)["__metadata__"]
    assert facts["format"] == "pt"
    assert facts["cuvee.seed"] == "7"
    assert facts["cuvee.inputs"].splitlines() == [f"{m.identity} {m.fingerprint}" for m in plan.models]
    assert "merge_method: linear" in facts["cuvee.recipe"]
    assert json.loads(plan.shards[1].header)["__metadata__"] == {"format": "pt"}
