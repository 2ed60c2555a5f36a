"""The NumPy Llama agrees with transformers, on the shipped family and on shapes that it does not have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cuvee.demo import family, llama
from cuvee.demo.skills import SKILLS, held_out_questions
from cuvee.errors import CheckpointError

BASE = family()["base"]


def make(folder: Path, **changes: Any) -> Path:
    """A random Llama with weights large enough for its logits to differ."""
    torch.manual_seed(7)
    settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "eos_token_id": 2,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((BASE / "tokenizer.json").read_bytes())
    return folder


def oracle(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def assert_same_logits(folder: Path) -> None:
    model, reference = llama.load(folder), oracle(folder)
    ids = np.random.default_rng(0).integers(0, 50, (3, 17))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    assert expected.std() > 0.1
    found = model.logits(ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    cache = model.cache(3, 17)
    parts = [model.logits(ids[:, start:stop], cache) for start, stop in ((0, 9), (9, 10), (10, 17))]
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", family())
def test_the_family_s_logits_are_those_of_transformers(name: str) -> None:
    assert_same_logits(family()[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"head_dim": 16},
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + str(next(iter(changes.values()))),
)
def test_other_shapes_too(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_same_logits(make(tmp_path, **changes))


def test_an_old_config_s_rope_theta_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, "rope_theta": 50.0, "head_dim": None}))
    assert_same_logits(folder)


@pytest.mark.parametrize("name", ["base", "add"])
def test_completions_are_those_of_transformers_in_the_prompts_order(name: str) -> None:
    folder = family()[name]
    tokenizer, reference = AutoTokenizer.from_pretrained(folder), oracle(folder)
    prompts = [question.prompt for skill in SKILLS for question in held_out_questions(skill, 6)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5)
        expected.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    assert len({len(text) for text in expected}) > 1
    assert llama.load(folder).complete(prompts, 5) == expected


def test_answering_needs_no_torch() -> None:
    code = (
        "import sys; from cuvee.demo import family, llama, run; "
        "llama.load(family()['add']).complete(['add: 1+2 = '], 3); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="Llama checkpoints only") as caught:
        llama.load(tmp_path)
    assert caught.value.found == "model_type gpt2"
