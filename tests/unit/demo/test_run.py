"""`cuvee demo` merges by its recipes and prints what transformers would find."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cuvee.demo import family, run
from cuvee.demo.skills import SKILLS, held_out_questions


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where one run of the demo left its files, and what it printed."""
    printed = io.StringIO()
    console = Console(width=100, file=printed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("system")))
        run.run_demo(None, console)
        out = next(Path(tempfile.gettempdir()).glob("cuvee-demo-*"))
    return out, printed.getvalue()


def percentages(text: str, name: str) -> list[str]:
    """The cells of one row of the printed table, without the model's name."""
    row = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in row.strip("│").split("│")][1:]


def transformers_accuracy(folder: Path, skill: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = held_out_questions(skill)
    batch = tokenizer([question.prompt for question in asked], return_tensors="pt", padding=True)
    made = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=10
    )
    texts: list[str] = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(text == question.answer for text, question in zip(texts, asked, strict=True)) / len(asked)


def test_the_printed_scores_are_those_that_transformers_finds(shown: tuple[Path, str]) -> None:
    out, text = shown
    expected = [transformers_accuracy(out / "ties", skill) for skill in SKILLS]
    assert percentages(text, "ties") == [f"{share:.1%}" for share in [*expected, sum(expected) / 3]]


def test_merging_visibly_works(shown: tuple[Path, str]) -> None:
    _, text = shown
    base = [float(cell.rstrip("%")) for cell in percentages(text, "base")]
    for name in run.MERGES:
        merged = [float(cell.rstrip("%")) for cell in percentages(text, name)]
        assert all(after >= before + 30 for before, after in zip(base, merged, strict=True)), name


def test_the_linear_merge_is_the_mean_of_the_experts(shown: tuple[Path, str]) -> None:
    merged = load_file(shown[0] / "linear" / "model.safetensors")
    experts = [load_file(family()[skill] / "model.safetensors") for skill in SKILLS]
    for name, values in merged.items():
        inputs = torch.stack([expert[name].double() for expert in experts])
        mean = inputs.mean(0)
        # One rounding to bfloat16; where the inputs cancel, what float32 sums of them leave over.
        bound = mean.abs() * 2**-8 + inputs.abs().amax(0) * 2**-22
        assert torch.all((values.double() - mean).abs() <= bound), name


def test_the_recipe_is_shown_and_the_ones_used_are_kept(shown: tuple[Path, str]) -> None:
    out, text = shown
    assert "merge_method: ties" in text
    assert str(out) in text.replace("\n", "")
    assert sorted(path.name for path in out.glob("*.yml")) == [f"{name}.yml" for name in run.MERGES]


def test_a_second_demo_replaces_the_merges_of_the_first(shown: tuple[Path, str]) -> None:
    out, _ = shown
    model = out / "linear" / "model.safetensors"
    before = model.read_bytes()
    model.write_bytes(b"spoilt")
    run.merge_family("linear", out)
    assert model.read_bytes() == before


@pytest.mark.parametrize("folder", ["/plain", '/with "quotes"', "/wîth: # $ {braces}"])
@pytest.mark.parametrize("name", run.MERGES)
def test_any_path_can_be_filled_into_a_recipe(name: str, folder: str) -> None:
    recipe: dict[str, Any] = yaml.safe_load(run.recipe_text(name, Path(folder)))
    assert recipe["merge_method"] == name
    assert [model["model"] for model in recipe["models"]] == [f"{folder}/{skill}" for skill in SKILLS]
    assert recipe.get("base_model", f"{folder}/base") == f"{folder}/base"


def test_the_best_of_each_column_is_in_bold() -> None:
    printed = io.StringIO()
    console = Console(width=80, force_terminal=True, color_system="standard", file=printed)
    results = {"base": {"reverse": 0.0, "sort": 0.25}, "x": {"reverse": 0.5, "sort": 0.125}}
    console.print(run.score_table(results))
    text = printed.getvalue()
    bold = [part.split("\x1b[0m")[0] for part in text.split("\x1b[1;32m")[1:]]
    assert bold == ["25.0%", "50.0%", "31.2%"]
