"""Cards of adapters: the code they show loads the base that the adapter is for."""

from __future__ import annotations

import pytest

from cuvee.lora.card import usage


@pytest.mark.parametrize(
    ("architectures", "loader"),
    [
        ([], "AutoModelForCausalLM"),
        (["LlamaForCausalLM"], "AutoModelForCausalLM"),
        (["BertForSequenceClassification"], "AutoModelForSequenceClassification"),
        (["WhisperForConditionalGeneration"], "WhisperForConditionalGeneration"),
    ],
)
def test_the_base_is_loaded_with_its_heads(architectures: list[str], loader: str) -> None:
    code = usage("adapter", "org/base", "abc", 70, architectures)
    assert f"from transformers import {loader}\n" in code
    assert f'model = {loader}.from_pretrained("org/base", revision="abc")\n' in code
    assert "model.resize_token_embeddings(70)" in code
