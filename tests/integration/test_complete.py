"""Law 1 and what a finished output holds: every tensor, in files that others read, with all that lies beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

import cuvee
from cuvee import MergeOptions
from cuvee.errors import CheckpointError, PlanError
from support.tiny_models import (
    BFLOAT16,
    Family,
    State,
    assert_rounded_once,
    llama_state,
    load_checkpoint,
    make_llama,
    recipe,
    save_llama,
)

LINEAR = """\
# two vats
merge_method: linear
models: [{model: "@a"}, {model: "@b"}]
parameters: {weight: 0.5}
"""
SIDE_FILES = {"LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
WRITTEN = {"README.md", "config.json", "mergekit_config.yml", "model.safetensors"}


def means(family: Family) -> State:
    a, b = family.exact("a"), family.exact("b")
    return {name: (a[name] + b[name]) / 2 for name in a}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes() for name in first
    )


def test_every_tensor_is_merged_and_the_report_counts(llama: Family, tmp_path: Path) -> None:
    report = cuvee.merge(recipe(LINEAR, llama), tmp_path / "out")
    assert_rounded_once(load_checkpoint(tmp_path / "out"), means(llama), llama.dtype)
    state = llama.state("a")
    stored = sum(tensor.nbytes for tensor in state.values())
    assert (report.merged, report.copied, report.dropped) == (len(state), 0, ())
    assert report.bytes_read == 2 * stored
    assert report.bytes_written == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.out == tmp_path / "out"
    assert set(report.files) == names_in(tmp_path / "out") == SIDE_FILES | WRITTEN
    assert report.seconds > 0
    assert report.peak_memory > 10_000_000


def test_what_slices_leave_out_is_named(llama: Family, tmp_path: Path) -> None:
    text = """
    merge_method: passthrough
    slices:
      - sources: [{model: "@a", layer_range: [0, 1]}]
      - sources: [{model: "@b", layer_range: [2, 3]}]
    """
    report = cuvee.merge(recipe(text, llama), tmp_path / "out")
    a, b, got = llama.state("a"), llama.state("b"), load_checkpoint(tmp_path / "out")
    used = {(str(llama.path("a")), name) for name in a if "layers.0." in name or "embed" in name}
    used |= {
        (str(llama.path("b")), name)
        for name in b
        if "layers.2." in name or name in {"lm_head.weight", "model.norm.weight"}
    }
    everything = {(str(llama.path(model)), name) for model in "ab" for name in a}
    assert set(report.dropped) == everything - used
    assert len(got) == len(used)
    assert (report.merged, report.copied) == (0, len(used))


def test_a_tensor_that_only_one_model_has_is_an_error(tmp_path: Path) -> None:
    family = make_llama(tmp_path / "family", names=("a", "b"))
    state = family.state("b")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, family.path("b") / "model.safetensors")
    with pytest.raises(PlanError, match=r"b lacks 1 of 30 \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        cuvee.plan(recipe(LINEAR, family))


def test_tied_and_untied_heads_meet(tmp_path: Path) -> None:
    """A head that one model leaves out because it is tied is its embedding; the output has a head, as the other has."""
    state, other = llama_state(), llama_state(seed=8)
    tied = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    save_llama(tmp_path / "a", other)
    save_llama(tmp_path / "b", tied, config={"tie_word_embeddings": True})
    family = Family("llama", tmp_path, np.dtype(np.float32))
    cuvee.merge(recipe(LINEAR, family), tmp_path / "out")
    exact = {name: (other[name].astype(np.float64) + tied[name]) / 2 for name in tied}
    head = other["lm_head.weight"].astype(np.float64) + tied["model.embed_tokens.weight"]
    assert_rounded_once(load_checkpoint(tmp_path / "out"), exact | {"lm_head.weight": head / 2}, family.dtype)


def test_side_files_are_the_bases(tmp_path: Path) -> None:
    family = make_llama(tmp_path / "family")
    for name in ("base", "a", "b"):
        (family.path(name) / "LICENSE").write_text(f"of {name}")
    text = LINEAR.replace("linear", "task_arithmetic") + 'base_model: "@base"\n'
    cuvee.merge(recipe(text, family), tmp_path / "out")
    for name in SIDE_FILES:
        assert (tmp_path / "out" / name).read_bytes() == (family.path("base") / name).read_bytes(), name
    assert "Not to be copied" not in (tmp_path / "out" / "README.md").read_text()
    cuvee.merge(recipe(LINEAR, family), tmp_path / "without base")
    assert (tmp_path / "without base" / "LICENSE").read_text() == "of a"


@pytest.mark.parametrize(
    ("options", "missing", "added"),
    [
        (MergeOptions(copy_tokenizer=False), {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}, set()),
        (MergeOptions(write_model_card=False), {"README.md", "mergekit_config.yml"}, set()),
        (MergeOptions(trust_remote_code=True), set(), {"modeling_custom.py"}),
    ],
)
def test_options_choose_files(
    options: MergeOptions, missing: set[str], added: set[str], llama: Family, tmp_path: Path
) -> None:
    cuvee.merge(recipe(LINEAR, llama), tmp_path / "out", options)
    assert names_in(tmp_path / "out") == (SIDE_FILES | WRITTEN | added) - missing


def test_config_keeps_its_text(tmp_path: Path) -> None:
    """Also what no installed transformers knows; only dtype and number of layers change."""
    config = '{"architectures":["LlamaForCausalLM"],\n\t"model_type" : "gruner-veltliner", "num_hidden_layers": 3,\n'
    config += '  "layer_types": ["full", "sliding", "none"], "torch_dtype": "float32", "odd": 1e-05 }'
    family = make_llama(tmp_path / "family", names=("a", "b"))
    (family.path("a") / "config.json").write_text(config)
    cuvee.merge(recipe(LINEAR + "out_dtype: float16\n", family), tmp_path / "one")
    assert (tmp_path / "one" / "config.json").read_text() == config.replace("float32", "float16")
    stack = """
    merge_method: passthrough
    slices:
      - sources: [{model: "@a", layer_range: [0, 2]}]
      - sources: [{model: "@a", layer_range: [1, 3]}]
    """
    cuvee.merge(recipe(stack, family), tmp_path / "two")
    changed = json.loads((tmp_path / "two" / "config.json").read_text())
    expected = {"num_hidden_layers": 4, "layer_types": ["full", "sliding", "sliding", "none"]}
    assert changed == {**json.loads(config), **expected}


def test_card_and_recipe(llama: Family, tmp_path: Path) -> None:
    text = recipe(LINEAR, llama)
    cuvee.merge(text, tmp_path / "out")
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == text
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == ["a", "b"]
    assert facts["tags"] == ["merge", "mergekit", "cuvee"]
    assert text.rstrip().replace(str(llama.folder), "") in body.replace(str(llama.folder), "")
    assert f"Cuvee {cuvee.__version__}" in body


def test_metadata_says_how_it_was_made(llama: Family, tmp_path: Path) -> None:
    text = recipe(LINEAR, llama)
    cuvee.merge(text, tmp_path / "out", MergeOptions(random_seed=5))
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["cuvee.version"] == cuvee.__version__
    assert metadata["cuvee.recipe"] == text
    assert metadata["cuvee.seed"] == "5"
    identities = [line.rsplit(" ", 1)[0] for line in metadata["cuvee.inputs"].splitlines()]
    assert identities == [str(llama.path("a")), str(llama.path("b"))]


def test_small_shards(llama: Family, tmp_path: Path) -> None:
    largest = 9000
    cuvee.merge(recipe(LINEAR, llama), tmp_path / "out", MergeOptions(out_shard_size="9K"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    stored: dict[str, str] = {}
    total = 0
    for file in files:
        with safe_open(file, "numpy") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= largest or len(tensors) == 1
        total += size
        stored |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == total
    cuvee.merge(recipe(LINEAR, llama), tmp_path / "whole")
    assert same(load_checkpoint(tmp_path / "out"), load_checkpoint(tmp_path / "whole"))
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    np.testing.assert_array_equal(
        model.lm_head.weight.detach().numpy(), load_checkpoint(tmp_path / "out")["lm_head.weight"]
    )
    again = f"merge_method: passthrough\nmodels: [{{model: {tmp_path / 'out'}}}]\n"
    cuvee.merge(again, tmp_path / "again")  # sharded inputs are read back
    assert same(load_checkpoint(tmp_path / "again"), load_checkpoint(tmp_path / "whole"))


def save_pickled(state: State, folder: Path, shards: int) -> None:
    """pytorch_model.bin, or several with an index; and nothing of safetensors."""
    import torch

    tensors = {
        name: torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        if value.dtype == BFLOAT16
        else torch.from_numpy(value)
        for name, value in state.items()
    }
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: value for name, value in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_pickled_inputs_give_the_same_bytes(dtype: np.dtype[Any], shards: int, tmp_path: Path) -> None:
    family = make_llama(tmp_path / "family", dtype=dtype, names=("base", "a", "b"))
    text = LINEAR.replace("linear", "ties") + 'base_model: "@base"\n'
    text = text.replace("weight: 0.5", "weight: 0.5, density: 0.5")
    cuvee.merge(recipe(text, family), tmp_path / "safe")
    for name in ("base", "b"):
        save_pickled(family.state(name), family.path(name), shards)
    cuvee.merge(recipe(text, family), tmp_path / "pickled")
    assert same(load_checkpoint(tmp_path / "safe"), load_checkpoint(tmp_path / "pickled"))


@pytest.mark.parametrize("size", ["5B", "9K"])
def test_pytorch_output_loads(size: str, llama_bf16: Family, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    options = MergeOptions(safe_serialization=False, out_shard_size=size)
    cuvee.merge(recipe(LINEAR, llama_bf16), tmp_path / "out", options)
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    files = sorted((tmp_path / "out").glob("*.bin"))
    assert (len(files) > 1) == (size == "9K") == (tmp_path / "out" / "pytorch_model.bin.index.json").is_file()
    got: State = {}
    for file in files:
        tensors = torch.load(file, weights_only=True)
        got |= {name: tensor.view(torch.int16).numpy().view(BFLOAT16) for name, tensor in tensors.items()}
    assert_rounded_once(got, means(llama_bf16), BFLOAT16)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}


def test_output_loads_with_its_tokenizer(llama: Family, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    cuvee.merge(recipe(LINEAR, llama), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w5 w9")["input_ids"] == [5, 9]
    assert tokenizer.apply_chat_template([{"content": "w7"}], tokenize=False) == "w7"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", np.float32),
        ("dtype: float16\n", np.float16),
        ("dtype: torch.bfloat16\n", BFLOAT16),
        ("dtype: float32\nout_dtype: bfloat16\n", BFLOAT16),
        ("out_dtype: float64\n", np.float64),
    ],
)
def test_dtypes(written: str, expected: Any, llama: Family, tmp_path: Path) -> None:
    cuvee.merge(recipe(LINEAR + written, llama), tmp_path / "out")
    dtype = np.dtype(expected)
    assert_rounded_once(load_checkpoint(tmp_path / "out"), means(llama), dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == dtype.name


def test_mixed_dtypes_are_promoted(tmp_path: Path) -> None:
    state = llama_state()
    for name, dtype in {"a": np.dtype(np.float16), "b": BFLOAT16}.items():
        save_llama(tmp_path / name, {key: value.astype(dtype) for key, value in state.items()})
    family = Family("llama", tmp_path, np.dtype(np.float32))
    cuvee.merge(recipe(LINEAR, family), tmp_path / "out")
    assert_rounded_once(load_checkpoint(tmp_path / "out"), means(family), family.dtype)


@pytest.fixture
def with_buffers(tmp_path: Path) -> Family:
    """Llamas that also hold integers and flags, as old checkpoints do."""
    family = make_llama(tmp_path / "family", names=("a", "b"))
    buffers = {"model.position_ids": np.arange(64), "model.layers.0.mask": np.tri(5, dtype=bool)}
    for name in ("a", "b"):
        save_file(family.state(name) | buffers, family.path(name) / "model.safetensors")
    return family


def test_buffers_that_agree_are_copied(with_buffers: Family, tmp_path: Path) -> None:
    report = cuvee.merge(recipe(LINEAR + "dtype: float16\n", with_buffers), tmp_path / "out")
    got = load_checkpoint(tmp_path / "out")
    assert report.copied == 2
    assert got["model.position_ids"].dtype == np.int64
    assert got["model.position_ids"].tolist() == list(range(64))
    assert got["model.layers.0.mask"].tolist() == np.tri(5, dtype=bool).tolist()


def test_buffers_that_differ_are_refused(with_buffers: Family, tmp_path: Path) -> None:
    state = with_buffers.state("b")
    state["model.position_ids"] = state["model.position_ids"] * 2
    save_file(state, with_buffers.path("b") / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.position_ids(.|\n)*family/a(.|\n)*family/b"):
        cuvee.merge(recipe(LINEAR, with_buffers), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_without_a_config_says_so(tmp_path: Path) -> None:
    family = make_llama(tmp_path / "family", names=("a", "b"))
    for name in "ab":
        (family.path(name) / "config.json").unlink()
    entries = 'merge_method: linear\nmodels: [{model: "@a"}, {model: "@b"}]\nparameters: {weight: 0.5}\n'
    report = cuvee.merge(recipe(entries, family), tmp_path / "out")
    assert "config.json" not in report.files
    assert any("has no config.json, so the merge has none" in line for line in report.warnings)
