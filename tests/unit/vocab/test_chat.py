from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Directory
from cuvee.vocab.chat import BUILT_IN, chosen_template, template_of

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
# Written from the formats' descriptions.
SPOKEN = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_speak_their_format(name: str) -> None:
    template = Environment(autoescape=False).from_string(BUILT_IN[name])
    said = template.render(messages=TALK, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert said == SPOKEN[name]


def test_auto_is_the_commonest_and_of_equals_the_first() -> None:
    assert chosen_template("auto", ["x", "y", None, "y"], "") == "y"
    assert chosen_template("auto", [None, "x", "y"], "") == "x"
    assert chosen_template("auto", [None], "") is None


@pytest.mark.parametrize(
    "text", ["{{ messages }}", "{% for m in messages %}{% generation %}a{% endgeneration %}{% endfor %}"]
)
def test_jinja_is_taken_as_it_is(text: str) -> None:
    assert chosen_template(text, [], "") == text


def test_what_is_neither_name_nor_jinja_is_refused() -> None:
    with pytest.raises(VocabularyError, match="no chat template called 'chatlm'") as caught:
        chosen_template("chatlm", [], "recipe.yml:3")
    assert "chatml" in str(caught.value.expected)
    assert caught.value.where == "recipe.yml:3"
    with pytest.raises(VocabularyError, match="not valid Jinja"):
        chosen_template("{% for m in messages %}", [], "")


@pytest.mark.parametrize(
    ("files", "settings", "found"),
    [
        ({"chat_template.jinja": "own"}, {"chat_template": "other"}, "own"),
        ({}, {"chat_template": "text"}, "text"),
        ({}, {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template.json": json.dumps({"chat_template": "j"})}, {}, "j"),
        ({"chat_template.json": "["}, {}, None),
        ({}, {}, None),
    ],
)
def test_where_models_keep_their_template(
    files: dict[str, str], settings: Any, found: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    location = Directory(tmp_path)
    assert template_of(location, location.sizes(), settings) == found
