from __future__ import annotations

import re

import pytest
import yaml

from cuvee.methods.registry import get_method
from cuvee.publish.card import CardInput, model_card
from cuvee.tensors.reference import ModelRef

RECIPE = "merge_method: ties\nmodels:\n  - model: org/a  # the first\n"
HUB = CardInput(ModelRef.parse("org/a@main"), "hf://org/a@c0ffee")
LOCAL = CardInput(ModelRef.parse("/home/anna/models/my-base"), "/home/anna/models/my-base", is_base=True)


def card(name: str = "out/my-merge", *, inputs: tuple[CardInput, ...] = (LOCAL, HUB), **more: object) -> str:
    facts: dict[str, object] = {"method": get_method("ties"), "recipe_text": RECIPE, "seed": 17, "version": "1.2.3"}
    return model_card(name, inputs=inputs, **(facts | more))  # type: ignore[arg-type]


def front_matter(text: str) -> dict[str, object]:
    start, matter, _ = text.split("---\n", 2)
    assert start == ""
    facts: dict[str, object] = yaml.safe_load(matter)
    return facts


def test_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(card()) == {
        "base_model": ["my-base", "org/a"],
        "library_name": "transformers",
        "tags": ["merge", "mergekit", "cuvee"],
    }


@pytest.mark.parametrize("name", ["yes", "1.0", "a: b # c", "- x", "{x}", "naïve", "'\"", "null", "@x", "---"])
def test_names_survive_yaml_as_the_text_they_are(name: str) -> None:
    model = CardInput(ModelRef("whatever"), f"/models/{name}")
    assert front_matter(card(inputs=(model,)))["base_model"] == [name]


def test_the_title_is_the_directory() -> None:
    assert "\n# my-merge\n" in card("/home/anna/out/my-merge/")
    assert "\n# my-merge\n" in card("C:\\Users\\anna\\my-merge")


def test_method_inputs_and_facts_are_told() -> None:
    text = card(dtype="bfloat16")
    ties = get_method("ties")
    assert f"`ties`: {ties.summary}" in text
    assert "TIES-Merging" in text
    assert "[arXiv:2306.01708](https://arxiv.org/abs/2306.01708)" in text
    assert "| my-base |  | base |\n| [org/a](https://huggingface.co/org/a) | c0ffee | merged |\n" in text
    assert "Random seed: 17." in text
    assert "Cuvee 1.2.3" in text
    assert "Weights: bfloat16;" in text
    assert "in the dtypes of the inputs" in card()


def test_adapters_are_inputs_too() -> None:
    model = CardInput(ModelRef.parse("org/a+org/lora@v2+/home/anna/loras/mine"), "hf://org/a@c0ffee")
    text = card(inputs=(model, HUB))
    assert front_matter(text)["base_model"] == ["org/a", "org/lora", "mine"]
    assert "| [org/lora](https://huggingface.co/org/lora) | v2 | adapter on the model above |" in text


def test_no_path_of_this_machine_is_told() -> None:
    windows = CardInput(ModelRef("x"), "C:\\Users\\anna\\models\\other")
    text = card("/home/anna/out", inputs=(LOCAL, windows))
    assert "anna" not in text
    assert "| other |" in text


def test_the_recipe_stays_as_written() -> None:
    assert f"\n```yaml\n{RECIPE}```\n" in card()
    tricky = 'x: "```"\n'
    assert f"\n````yaml\n{tricky}````\n" in card(recipe_text=tricky)


def test_a_tables_signs_are_escaped() -> None:
    text = card("a*b`c", inputs=(CardInput(ModelRef("x"), "/m/a|b<c>"),))
    assert "| a\\|b\\<c\\> |  | merged |" in text
    assert "\n# a\\*b\\`c\n" in text


@pytest.mark.parametrize(
    ("architectures", "auto"),
    [
        (["LlamaForCausalLM"], "AutoModelForCausalLM"),
        (["GPT2LMHeadModel"], "AutoModelForCausalLM"),
        (["BertForMaskedLM"], "AutoModelForMaskedLM"),
        (["BertModel"], "AutoModel"),
        ([], "AutoModel"),
    ],
)
def test_the_example_loads_with_the_class_that_fits(architectures: list[str], auto: str) -> None:
    import transformers

    text = card(architectures=architectures)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert f'model = {auto}.from_pretrained("my-merge", dtype="auto")\n' in code
    assert 'AutoTokenizer.from_pretrained("my-merge")' in code
    assert hasattr(transformers, auto)


def test_the_example_is_code_whatever_the_name() -> None:
    text = card('say "hi"', with_tokenizer=False)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert "Tokenizer" not in code
