"""The main job on real checkpoints: a subset of examples/real_siblings.py, whose parts these tests use."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import cuvee

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / "scratch" / "real"


def example(name: str) -> Any:
    """A module of examples/, which find each other as a script's neighbours do."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


inputs, oracle, probes, siblings = map(example, ("real_inputs", "real_oracle", "real_probes", "real_siblings"))


@pytest.fixture(scope="module")
def berts() -> dict[str, Path]:
    encoders: dict[str, Path] = inputs.bert_encoders(SCRATCH)
    return encoders


@pytest.fixture(scope="module")
def smollm2() -> Path:
    base: Path = inputs.smollm2(SCRATCH)
    return base


@pytest.fixture(scope="module")
def jobs(berts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return siblings.bert_jobs(berts, tmp_path_factory.mktemp("masks"))


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_a_bert_merge_is_its_formula_and_loads(method: str, jobs: Any, tmp_path: Path) -> None:
    recipe, models, formula = jobs[method]
    out = cuvee.merge(recipe, tmp_path / "out").out
    far = oracle.distance(out, models, formula)
    # Seven float32 roundings of numbers up to three times the weights; one wrong mask entry would be thousands.
    assert far.input_ulp < 12
    assert far.nearest > 0.6 * far.elements
    assert far.elements > 6_000_000
    assert probes.loaded(out, "BertModel")[1] == "0, 0"


def test_dare_keeps_the_share_it_was_told(berts: dict[str, Path], tmp_path: Path) -> None:
    base, *tuned = (berts[name] for name in inputs.BERTS)
    masks = siblings.dare_masks(base, tuned, (0.5, 0.3), tmp_path)
    layer = "encoder.layer.{}.intermediate.dense.weight"  # 131072 numbers each, all of which differ
    kept = [[float(mask.mean()) for mask in masks(layer.format(i))] for i in range(12)]
    for position, density in enumerate((0.5, 0.3)):
        mean = sum(share[position] for share in kept) / len(kept)
        deviation = (density * (1 - density) / (12 * 131072)) ** 0.5
        assert abs(mean - density) < 5 * deviation


def test_siblings_with_other_heads_are_refused_by_name(tmp_path: Path) -> None:
    originals = inputs.original_berts(SCRATCH)
    base, bare, headed = (originals[name] for name in inputs.BERTS)
    told = {bare: r"lacks 8 of 207 \(cls.predictions.bias", headed: r"lacks 8 of 209 \(cls.predictions.bias"}
    for other, found in told.items():
        recipe = siblings.recipe_of("linear", [(base, {"weight": 1}), (other, {"weight": 1})])
        with pytest.raises(cuvee.CuveeError) as caught:
            cuvee.merge(recipe, tmp_path / "out")
        assert re.search(f"{re.escape(str(other))} {found}", caught.value.found or "")
        assert not (tmp_path / "out").exists()


def test_siblings_with_other_names_merge_as_their_encoders_do(berts: dict[str, Path], tmp_path: Path) -> None:
    originals = inputs.original_berts(SCRATCH)
    outs = []
    for number, found in enumerate((originals, berts)):
        base, *tuned = (found[name] for name in inputs.BERTS)
        recipe = siblings.recipe_of("ties", [(other, {"weight": 0.7, "density": 0.4}) for other in tuned], base)
        outs.append(cuvee.merge(recipe | {"missing": "base"}, tmp_path / str(number)).out)
    prefixed, bare = (siblings.tensors_of(out) for out in outs)
    alike = [name for name in bare if prefixed[f"bert.{name}"].equal(bare[name])]
    # DARE and the like would draw other masks under other names; TIES does not draw.
    assert len(alike) == len(bare) - ("embeddings.position_ids" in bare) == 199


def test_real_pickles_give_what_safetensors_give(berts: dict[str, Path], tmp_path: Path) -> None:
    originals = inputs.original_berts(SCRATCH)
    base, tuned, _ = inputs.BERTS
    outs = [
        cuvee.merge(
            siblings.recipe_of("ties", [(found[tuned], {"weight": 0.7, "density": 0.4})], berts[base]), tmp_path / name
        ).out
        for name, found in (("bin", originals), ("safe", berts))
    ]
    assert siblings.equal_tensors(*outs) == "199 of 199 tensors equal in every bit"
    itself = siblings.recipe_of("linear", [(originals[base], {"weight": 1})] * 2)
    out = cuvee.merge(itself, tmp_path / "itself").out
    assert siblings.equal_tensors(out, originals[base]) == "207 of 207 tensors equal in every bit"


def test_a_chat_model_merged_with_itself_is_itself(smollm2: Path, tmp_path: Path) -> None:
    recipe = siblings.recipe_of("ties", [(smollm2, {"weight": 1.0})] * 2, smollm2)
    linear = siblings.recipe_of("linear", [(smollm2, {"weight": 0.3}), (smollm2, {"weight": 0.7})])
    for number, made_from in enumerate((recipe, linear)):
        out = cuvee.merge(made_from, tmp_path / str(number)).out
        assert siblings.equal_tensors(out, smollm2) == "272 of 272 tensors equal in every bit"
        assert (out / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()
        assert (out / "chat_template.jinja").read_bytes() == (smollm2 / "chat_template.jinja").read_bytes()


def test_a_chat_model_stacked_on_itself_loads_and_answers(smollm2: Path, tmp_path: Path) -> None:
    report = cuvee.merge(siblings.stack_recipe(smollm2), tmp_path / "stack")
    model, keys = probes.loaded(report.out, "AutoModelForCausalLM")
    layer = 3_540_096  # 576 x (576 + 192 + 192 + 576) + 3 x 576 x 1536 + 2 x 576
    assert (keys, report.merged, report.copied) == ("0, 0", 0, 2 + 32 * 9)
    assert model.num_parameters() == 49152 * 576 + 32 * layer + 576
    before, after = siblings.tensors_of(smollm2), siblings.tensors_of(report.out)
    assert "lm_head.weight" not in after
    for place, source in ((0, 0), (19, 19), (20, 18), (31, 29)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert after[name.format(place)].equal(before[name.format(source)])
    (answer,) = probes.ask(model, report.out, inputs.held_out_questions()[:1], new_tokens=8)
    assert any(character.isalpha() for character in answer)
