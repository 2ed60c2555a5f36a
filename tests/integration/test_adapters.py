"""`base+adapter` against PEFT: adapters that PEFT makes, merged by it and read by us."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import cuvee
from cuvee.errors import PlanError
from cuvee.options import MergeOptions
from support.adapters import (
    load_model,
    lora_state,
    merged_by_peft,
    quiet_peft,
    save_adapter,
    save_model,
    write_adapter,
)
from support.tiny_models import Family, State, load_checkpoint

LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "vocab_size": 40,
}  # fmt: skip


def config_of(kind: str) -> Any:
    import transformers as t

    if kind.startswith("llama"):
        return t.LlamaConfig(
            **SMALL,
            intermediate_size=32,
            attention_bias="bias" in kind,
            tie_word_embeddings="tied" in kind,
            architectures=["LlamaForCausalLM"],
        )
    if kind == "gpt2":
        return t.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, architectures=["GPT2LMHeadModel"]
        )
    if kind == "vit":
        return t.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, architectures=["ViTForImageClassification"],
        )  # fmt: skip
    if kind == "classifier":
        return t.LlamaConfig(
            **SMALL, intermediate_size=32, num_labels=3, pad_token_id=0,
            architectures=["LlamaForSequenceClassification"],
        )  # fmt: skip
    if kind == "llava":
        return t.LlavaConfig(
            text_config=t.LlamaConfig(**SMALL, intermediate_size=32),
            vision_config=t.CLIPVisionConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
                patch_size=4,
            ),
            image_token_index=39,
            architectures=["LlavaForConditionalGeneration"],
        )  # fmt: skip
    if kind == "t5":
        return t.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0,
            architectures=["T5ForConditionalGeneration"],
        )  # fmt: skip
    if kind == "whisper":
        return t.WhisperConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=40, num_mel_bins=8, max_source_positions=16,
            max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            architectures=["WhisperForConditionalGeneration"],
        )  # fmt: skip
    if kind == "mixtral":
        return t.MixtralConfig(**SMALL, intermediate_size=24, num_local_experts=3, architectures=["MixtralForCausalLM"])
    if kind == "qwen3_moe":
        return t.Qwen3MoeConfig(
            **SMALL,
            intermediate_size=24,
            moe_intermediate_size=20,
            num_experts=4,
            num_experts_per_tok=2,
            architectures=["Qwen3MoeForCausalLM"],
        )
    return t.GptOssConfig(**SMALL, intermediate_size=16, num_local_experts=3, architectures=["GptOssForCausalLM"])


def lora(**more: Any) -> Callable[[], Any]:
    def make() -> Any:
        from peft import LoraConfig

        return LoraConfig(**LORA | more)

    return make


def other(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import peft

        return getattr(peft, name)(**settings)

    return make


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Name -> (base, PEFT's config, how many of the base's tensors it changes).
CASES: dict[str, tuple[str, Callable[[], Any], int]] = {
    "names": ("llama", lora(target_modules=["q_proj", "v_proj"]), 4),
    "regex": ("llama", lora(target_modules=r".*layers\.1\..*(q|k)_proj"), 2),
    "all-linear": ("llama", lora(target_modules="all-linear"), 14),
    "layers_to_transform": ("llama", lora(target_modules=["q_proj"], layers_to_transform=[1]), 1),
    "use_rslora": ("llama", lora(target_modules=["q_proj"], use_rslora=True), 2),
    "patterns": (
        "llama",
        lora(
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"layers.1.*q_proj": 2, "down_proj": 6},
            alpha_pattern={"v_proj": 3},
        ),
        6,
    ),
    "modules_to_save": ("llama", lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]), 4),
    "embeddings and head": ("llama", lora(target_modules=["embed_tokens", "lm_head"]), 2),
    "DoRA": ("llama", lora(target_modules=["q_proj", "down_proj", "embed_tokens"], use_dora=True), 5),
    "bias all": ("llama-bias", lora(target_modules=["q_proj"], bias="all"), 10),
    "bias lora_only": ("llama-bias", lora(target_modules=["q_proj"], bias="lora_only"), 4),
    "lora_bias": ("llama-bias", lora(target_modules=["q_proj"], lora_bias=True), 4),
    "Conv1D": ("gpt2", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), 6),
    "Conv1D with DoRA": ("gpt2", lora(target_modules=["c_fc", "c_proj"], fan_in_fan_out=True, use_dora=True), 6),
    "convolution": ("vit", lora(target_modules=["query", "projection"], modules_to_save=["classifier"]), 3),
    "convolution with DoRA": ("vit", lora(target_modules=["projection"], use_dora=True), 1),
    "a task's head": ("classifier", lora(target_modules=["q_proj"], task_type="SEQ_CLS"), 3),
    "trainable tokens": ("llama", lora(target_modules=["q_proj"], trainable_token_indices=[3, 39]), 3),
    "trainable tokens, tied": ("llama-tied", lora(target_modules=["q_proj"], trainable_token_indices=[3, 39]), 3),
    "only tokens": ("llama", other("TrainableTokensConfig", token_indices=[0, 5], target_modules=["embed_tokens"]), 1),
    "experts, one by one on disk": ("mixtral", lora(target_modules=["q_proj"], target_parameters=EXPERTS), 20),
    "whole experts, one by one on disk": ("mixtral", lora(target_modules=["q_proj"], modules_to_save=["experts"]), 20),
    "text, vision and what joins them": ("llava", lora(target_modules="all-linear"), 28),
    "some parameters": (
        "qwen3_moe",
        lora(target_modules=[], target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"]),
        10,
    ),
    "experts, transposed": (
        "gpt_oss",
        lora(
            target_modules=["q_proj"],
            target_parameters=EXPERTS,
            rank_pattern={"experts.down_proj": 2},
            alpha_pattern={"experts.gate_up_proj": 3},
        ),
        6,
    ),
    "AdaLoRA": (
        "llama",
        other("AdaLoraConfig", init_r=6, target_r=4, lora_alpha=8, total_step=9, target_modules=["q_proj"],
              init_lora_weights=False),
        2,
    ),
    "LoHa": ("llama", other("LoHaConfig", r=3, alpha=5, target_modules=["q_proj", "down_proj"], init_weights=False), 4),
    "LoKr": ("llama", other("LoKrConfig", r=3, alpha=5, target_modules=["q_proj", "down_proj"], init_weights=False), 4),
    "LoKr of products": (
        "llama",
        other("LoKrConfig", r=1, alpha=5, target_modules=["q_proj", "down_proj"], decompose_both=True,
              decompose_factor=4, init_weights=False),
        4,
    ),
    "IA3": (
        "llama-bias",
        other("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
              init_ia3_weights=False),
        6,
    ),
    "IA3 on Conv1D": (
        "gpt2",
        other("IA3Config", target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
              fan_in_fan_out=True, init_ia3_weights=False),
        6,
    ),
    "VeRA": ("llama", other("VeraConfig", r=4, target_modules=["q_proj", "k_proj"], init_weights=False), 4),
    "VeRA on Conv1D": (
        "gpt2",
        other("VeraConfig", r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, init_weights=False),
        4,
    ),
    "norms": ("llama", other("LNTuningConfig", target_modules=["input_layernorm", "model.norm"]), 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny base of a kind, each made once."""
    return cache(lambda kind: save_model(config_of(kind), tmp_path_factory.mktemp(kind) / "base"))


def passthrough(model: str, out: Path, **options: Any) -> State:
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": model}]}, out, MergeOptions(**options))
    return load_checkpoint(out)


def assert_close(got: State, want: State, within: float = 1e-6) -> None:
    """The same tensors, and no element off by more than `within` of its tensor's largest."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].shape == tensor.shape, name
        assert got[name].dtype == tensor.dtype, name
        assert abs(got[name] - tensor).max() <= within * abs(tensor).max(), name


def changed(got: State, base: State) -> set[str]:
    return {name for name in base if got[name].tobytes() != base[name].tobytes()}


@pytest.mark.parametrize("name", CASES)
def test_equals_merge_and_unload(name: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    kind, config, count = CASES[name]
    base = base_of(kind)
    adapter = save_adapter(base, config(), tmp_path / "adapter")
    want = merged_by_peft(base, [adapter], tmp_path / "peft")
    got = passthrough(f"{base}+{adapter}", tmp_path / "out")
    assert_close(got, want)
    assert len(changed(got, load_checkpoint(base))) == count


def test_stacked_adapters(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("llama")
    first = save_adapter(base, lora(target_modules=["q_proj", "k_proj"])(), tmp_path / "first", seed=1)
    second = save_adapter(base, lora(target_modules=["q_proj"], use_dora=True, r=3)(), tmp_path / "second", seed=2)
    want = merged_by_peft(base, [first, second], tmp_path / "peft")
    assert_close(passthrough(f"{base}+{first}+{second}", tmp_path / "out"), want)


def test_pickled_adapter(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    base = base_of("llama")
    adapter = save_adapter(base, lora(target_modules=["q_proj"])(), tmp_path / "adapter")
    want = passthrough(f"{base}+{adapter}", tmp_path / "safe")
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, adapter / "adapter_model.bin")
    assert_close(passthrough(f"{base}+{adapter}", tmp_path / "pickled"), want, within=0)


def untie(model: Any) -> None:
    """Gives a tied model a head of its own with the same values."""
    import torch

    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_tied_heads_do_what_the_running_adapter_does(
    settings: dict[str, Any], base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    base = base_of("llama-tied")
    adapter = save_adapter(base, lora(**settings)(), tmp_path / "adapter")
    got = passthrough(f"{base}+{adapter}", tmp_path / "out")
    if "ensure_weight_tying" not in settings:  # which leaves models alone that are not tied
        assert_close(got, merged_by_peft(base, [adapter], tmp_path / "peft", prepare=untie))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    tokens = torch.arange(12)[None]
    with quiet_peft(), torch.no_grad():
        running = PeftModel.from_pretrained(load_model(base), adapter).eval()(tokens).logits
        merged = load_model(tmp_path / "out").eval()(tokens).logits
    assert (running - merged).abs().max() <= 1e-5 * running.abs().max()


@pytest.mark.parametrize(
    ("settings", "vocabulary", "tied"),
    [
        ({}, 43, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, None, True),
        ({"trainable_token_indices": [40, 41]}, 43, True),
        ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}, None, True),
        ({"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}}, None, False),
        ({"trainable_token_indices": {"lm_head": [7]}}, None, False),
        ({"trainable_token_indices": {"embed_tokens": [40], "lm_head": [41]}}, 43, False),
    ],
    ids=str,
)
def test_a_head_stays_tied_as_long_as_the_adapter_does(
    settings: dict[str, Any], vocabulary: int | None, tied: bool, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    base = base_of("llama-tied")
    adapter = save_adapter(
        base, lora(target_modules=["q_proj"], **settings)(), tmp_path / "adapter", vocabulary=vocabulary
    )
    got = passthrough(f"{base}+{adapter}", tmp_path / "out")
    assert ("lm_head.weight" not in got) is tied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is tied
    tokens = torch.arange(vocabulary or 40)[None]
    with quiet_peft(), torch.no_grad():
        model = load_model(base)
        if vocabulary is not None:
            model.resize_token_embeddings(vocabulary)
        running = PeftModel.from_pretrained(model, adapter).eval()(tokens).logits
        merged = load_model(tmp_path / "out").eval()(tokens).logits
    assert (running - merged).abs().max() <= 1e-5 * running.abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "proj_out"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["proj_out"]},
    ],
    ids=str,
)
def test_a_tied_head_by_another_name(settings: dict[str, Any], base_of: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    base = base_of("whisper")
    adapter = save_adapter(base, lora(**settings)(), tmp_path / "adapter")
    assert "proj_out.weight" in passthrough(f"{base}+{adapter}", tmp_path / "out")
    torch.manual_seed(0)
    inputs = {"input_features": torch.randn(1, 8, 32), "decoder_input_ids": torch.arange(12)[None]}
    with quiet_peft(), torch.no_grad():
        running = PeftModel.from_pretrained(load_model(base), adapter).eval().base_model.model(**inputs).logits
        merged = load_model(tmp_path / "out").eval()(**inputs).logits
    assert (running - merged).abs().max() <= 1e-5 * running.abs().max()


def test_what_encoder_and_decoder_share_may_be_saved_under_every_name(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of("t5")
    settings = {"modules_to_save": ["shared", "lm_head"], "ensure_weight_tying": True}
    adapter = save_adapter(base, lora(target_modules=["q"], **settings)(), tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    assert "base_model.model.encoder.embed_tokens.weight" in held
    got = passthrough(f"{base}+{adapter}", tmp_path / "out")
    assert got.keys() == load_checkpoint(base).keys()
    assert got["shared.weight"].tobytes() == held["base_model.model.shared.weight"].tobytes()


def test_added_tokens_resize_the_vocabulary(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("llama")
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])()
    adapter = save_adapter(base, config, tmp_path / "adapter", vocabulary=43)
    (adapter / "tokenizer.json").write_text('{"of": "the adapter"}')
    want = merged_by_peft(base, [adapter], tmp_path / "peft", prepare=lambda model: model.resize_token_embeddings(43))
    got = passthrough(f"{base}+{adapter}", tmp_path / "out")
    assert got["model.embed_tokens.weight"].shape == (43, 16)
    assert_close(got, want)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 43
    assert "the adapter" in (tmp_path / "out" / "tokenizer.json").read_text()


def test_a_base_saved_without_prefix(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """GPT-2 on the Hub has no `transformer.` before its names; adapters trained on it do."""
    base = base_of("gpt2")
    adapter = save_adapter(base, lora(target_modules=["c_attn"], fan_in_fan_out=True)(), tmp_path / "adapter")
    want = passthrough(f"{base}+{adapter}", tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((base / "config.json").read_text())
    from safetensors.numpy import save_file

    state = {name.removeprefix("transformer."): value for name, value in load_checkpoint(base).items()}
    save_file(state, bare / "model.safetensors")
    got = passthrough(f"{bare}+{adapter}", tmp_path / "bare-out")
    assert_close(got, {name.removeprefix("transformer."): value for name, value in want.items()}, within=0)


# --- merges of several, on the hand-made Llamas ---

SHAPES = {f"model.layers.{i}.self_attn.q_proj": (16, 16) for i in range(3)} | {
    "model.layers.1.mlp.down_proj": (16, 32),
    "lm_head": (128, 16),
}


def adapters_on(family: Family, folder: Path, count: int = 5) -> tuple[list[str], list[State]]:
    """`base+adapter` references, and the float64 values that they mean."""
    base = family.state("base")
    shapes = {module: base[f"{module}.weight"].shape for module in SHAPES if f"{module}.weight" in base}
    references, meanings = [], []
    for number in range(count):
        state = lora_state(shapes, rank=4, seed=number)
        references.append(f"{family.path('base')}+{write_adapter(folder / f'adapter{number}', state)}")
        meaning = {name: tensor.astype(np.float64) for name, tensor in base.items()}
        for module in shapes:
            b, a = (state[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "BA")
            meaning[f"{module}.weight"] += 2.0 * b @ a
        meanings.append(meaning)
    return references, meanings


def merge_many(
    references: list[str], base: Path, out: Path, method: str, options: MergeOptions, **parameters: Any
) -> State:
    entries = [{"model": reference, "parameters": {"weight": 0.1 * (i + 1)}} for i, reference in enumerate(references)]
    recipe: dict[str, Any] = {"merge_method": method, "models": entries, "parameters": parameters}
    if method != "linear":
        recipe["base_model"] = str(base)
    cuvee.merge(recipe, out, options)
    return load_checkpoint(out)


def test_five_adapters_by_task_arithmetic(llama: Family, tmp_path: Path) -> None:
    references, meanings = adapters_on(llama, tmp_path)
    got = merge_many(references, llama.path("base"), tmp_path / "out", "task_arithmetic", MergeOptions())
    base = llama.state("base")
    want = {
        name: base[name] + sum(0.1 * (i + 1) * (meaning[name] - base[name]) for i, meaning in enumerate(meanings))
        for name in base
    }
    for name, tensor in want.items():
        assert abs(got[name] - tensor).max() <= 1e-6 * abs(tensor).max(), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp", "della", "karcher", "sce"])
def test_adapters_merge_like_the_models_they_mean(method: str, llama: Family, tmp_path: Path) -> None:
    """The same recipe on models that were merged beforehand, in float64, gives the same to float32's precision."""
    from support.tiny_models import save_llama

    references, meanings = adapters_on(llama, tmp_path, count=2)
    dense = []
    for number, meaning in enumerate(meanings):
        save_llama(tmp_path / f"dense{number}", {n: t.astype(np.float32) for n, t in meaning.items()}, layers=3)
        dense.append(str(tmp_path / f"dense{number}"))
    base = llama.path("base")
    results = []
    for kind, models in (("lazy", references), ("dense", dense)):
        entries: list[dict[str, Any]] = [{"model": model, "parameters": {"weight": 0.4}} for model in models]
        recipe: dict[str, Any] = {"merge_method": method, "models": entries}
        if method == "slerp":
            recipe = {"merge_method": method, "models": entries[:1], "parameters": {"t": 0.3}}
        if method not in ("linear", "karcher"):
            recipe["base_model"] = str(base)
        if method in ("ties", "dare_ties", "della"):
            recipe["parameters"] = {"density": 0.5}
        cuvee.merge(recipe, tmp_path / kind)
        results.append(load_checkpoint(tmp_path / kind))
    for name, tensor in results[1].items():
        off = abs(results[0][name] - tensor) > 2e-6 * abs(tensor).max()
        assert off.mean() <= 0.002, name  # an entry on the edge of a mask may fall to either side


@pytest.mark.parametrize("method", ["linear", "ties", "model_stock"])
def test_threads_and_budget_change_no_byte(method: str, llama: Family, tmp_path: Path) -> None:
    references, _ = adapters_on(llama, tmp_path, count=3)
    parameters = {"density": 0.5} if method == "ties" else {}
    runs = [
        merge_many(references, llama.path("base"), tmp_path / str(i), method, options, **parameters)
        for i, options in enumerate(
            [MergeOptions(threads=1), MergeOptions(threads=3, memory="40MiB"), MergeOptions(processes=2)]
        )
    ]
    for name, tensor in runs[0].items():
        assert tensor.tobytes() == runs[1][name].tobytes() == runs[2][name].tobytes(), name


def test_torch_gives_the_same_to_a_rounding(llama: Family, tmp_path: Path) -> None:
    references, _ = adapters_on(llama, tmp_path, count=2)
    base = llama.path("base")
    here = merge_many(references, base, tmp_path / "numpy", "ties", MergeOptions(), density=0.5)
    there = merge_many(references, base, tmp_path / "torch", "ties", MergeOptions(device="torch:cpu"), density=0.5)
    for name, tensor in here.items():
        assert abs(there[name] - tensor).max() <= 1e-6 * abs(tensor).max(), name


def test_a_plan_with_adapters_is_json(llama: Family, tmp_path: Path) -> None:
    from cuvee.planning.ops import plan_from_json, plan_to_json

    references, _ = adapters_on(llama, tmp_path, count=2)
    planned = cuvee.plan({"merge_method": "linear", "models": [
        {"model": reference, "parameters": {"weight": 1.0}} for reference in references
    ]})  # fmt: skip
    assert plan_from_json(plan_to_json(planned)).ops == planned.ops


def test_the_base_is_read_once(llama: Family, tmp_path: Path) -> None:
    references, _ = adapters_on(llama, tmp_path)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(llama.path("base")),
        "models": [{"model": reference, "parameters": {"weight": 1.0}} for reference in references],
    }
    base_bytes = sum(tensor.nbytes for tensor in llama.state("base").values())
    factor_bytes = sum(
        tensor.nbytes
        for number in range(5)
        for tensor in load_file(tmp_path / f"adapter{number}" / "adapter_model.safetensors").values()
    )
    assert cuvee.plan(recipe).bytes_read == base_bytes + factor_bytes


# --- what stands for a base ---


def test_an_adapter_alone_takes_the_base_that_it_names(llama: Family, tmp_path: Path) -> None:
    base = llama.path("base")
    state = lora_state({"lm_head": (128, 16)})
    named = write_adapter(tmp_path / "named", state, base_model_name_or_path=str(base))
    want = passthrough(f"{base}+{named}", tmp_path / "want")
    assert_close(passthrough(str(named), tmp_path / "got"), want, within=0)


def test_an_adapter_alone_falls_back_to_the_recipes_base(llama: Family, tmp_path: Path) -> None:
    base = llama.path("base")
    adapter = write_adapter(tmp_path / "a", lora_state({"lm_head": (128, 16)}), base_model_name_or_path="/not/here")
    entry = {"parameters": {"weight": 1.0}}
    recipe: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": str(base)}
    cuvee.merge({**recipe, "models": [{"model": str(adapter), **entry}]}, tmp_path / "alone")
    cuvee.merge({**recipe, "models": [{"model": f"{base}+{adapter}", **entry}]}, tmp_path / "both")
    assert_close(load_checkpoint(tmp_path / "alone"), load_checkpoint(tmp_path / "both"), within=0)
    with pytest.raises(PlanError, match="nothing says on which base"):
        cuvee.plan({"merge_method": "passthrough", "models": [{"model": str(adapter)}]})


def test_the_fingerprint_knows_the_scaling(llama: Family, tmp_path: Path) -> None:
    """Alpha is in the config and not in the header of the weights, and changes every value."""
    prints = set()
    for alpha in (8, 16):
        adapter = write_adapter(tmp_path / str(alpha), lora_state({"lm_head": (128, 16)}), lora_alpha=alpha)
        recipe = {"merge_method": "passthrough", "models": [{"model": f"{llama.path('base')}+{adapter}"}]}
        prints.add(cuvee.plan(recipe).models[0].fingerprint)
    assert len(prints) == 2


def test_a_mapping_for_paths_with_a_plus(llama: Family, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base+more"
    shutil.copytree(llama.path("base"), base)
    adapter = write_adapter(tmp_path / "my+adapter", lora_state({"lm_head": (128, 16)}))
    model = {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": model}]}, tmp_path / "out")
    plain = write_adapter(tmp_path / "plain", lora_state({"lm_head": (128, 16)}))
    want = passthrough(f"{llama.path('base')}+{plain}", tmp_path / "want")
    assert_close(load_checkpoint(tmp_path / "out"), want, within=0)


def test_a_sum_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from cuvee.errors import CheckpointError
    from support.checkpoints import write_checkpoint

    base = write_checkpoint(tmp_path / "base", {"m.q.weight": np.full((6, 8), 60000, np.float16)})
    state = {"m.q.lora_A.weight": np.full((4, 8), 40, np.float32), "m.q.lora_B.weight": np.full((6, 4), 40, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", state)
    with pytest.raises(CheckpointError, match="does not fit F16"):
        passthrough(f"{base}+{adapter}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_legacy_options_are_taken(llama: Family, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_state({"lm_head": (128, 16)}))
    model = f"{llama.path('base')}+{adapter}"
    got = passthrough(model, tmp_path / "out", lora_merge_cache=str(tmp_path / "cache"), lora_merge_dtype="float16")
    assert_close(got, passthrough(model, tmp_path / "plain"), within=0)
    assert not (tmp_path / "cache").exists()
