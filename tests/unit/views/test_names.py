from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import PlanError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Stored
from cuvee.views.names import matched
from support.checkpoints import Array, write_checkpoint

RNG = np.random.default_rng(3)
HIDDEN, INNER, KEYS = 8, 6, 4


def values(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def decoder(layers: int = 2, *, experts: int = 0) -> dict[str, Array]:
    """A decoder's tensors, split as finely as any layout stores them."""
    found = {"model.embed_tokens.weight": values(10, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        sizes = {"q": HIDDEN, "k": KEYS, "v": KEYS}
        found |= {f"{at}self_attn.{name}_proj.weight": values(size, HIDDEN) for name, size in sizes.items()}
        found |= {f"{at}self_attn.{name}_proj.bias": values(size) for name, size in sizes.items()}
        found[f"{at}self_attn.o_proj.weight"] = values(HIDDEN, HIDDEN)
        for expert in (f"experts.{e}." for e in range(experts)) if experts else [""]:
            found[f"{at}mlp.{expert}gate_proj.weight"] = values(INNER, HIDDEN)
            found[f"{at}mlp.{expert}up_proj.weight"] = values(INNER, HIDDEN)
            found[f"{at}mlp.{expert}down_proj.weight"] = values(HIDDEN, INNER)
        found[f"{at}input_layernorm.weight"] = values(HIDDEN)
    return found | {"model.norm.weight": values(HIDDEN), "lm_head.weight": values(10, HIDDEN)}


def fused(tensors: Mapping[str, Array], *, leaf: str = "qkv_proj") -> dict[str, Array]:
    """Queries, keys and values in one tensor, gates and ups in another."""
    rows = {leaf: ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    result = dict(tensors)
    for whole, pieces in rows.items():
        for name in [name for name in tensors if f".{pieces[0]}." in name]:
            parts = [result.pop(name.replace(pieces[0], piece)) for piece in pieces]
            result[name.replace(pieces[0], whole)] = np.concatenate(parts)
    return result


def stacked(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The experts of each layer in two tensors, as transformers 5 holds them."""
    result = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for at in sorted({name.split("experts.")[0] for name in tensors if ".experts." in name}):
        count = len({name for name in tensors if name.startswith(at) and "down_proj" in name})
        each = [{p: tensors[f"{at}experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")} for e in range(count)]
        result[f"{at}experts.gate_up_proj"] = np.stack([np.concatenate([e["gate"], e["up"]]) for e in each])
        result[f"{at}experts.down_proj"] = np.stack([e["down"] for e in each])
    return result


def renamed(tensors: Mapping[str, Array], *rules: tuple[str, str]) -> dict[str, Array]:
    result = dict(tensors)
    for pattern, replacement in rules:
        result = {re.sub(pattern, replacement, name): tensor for name, tensor in result.items()}
    assert len(result) == len(tensors)
    return result


class Folder:
    """Checkpoints under names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, name: str, tensors: Mapping[str, Array], config: Mapping[str, Any] | None = None) -> Checkpoint:
        return open_checkpoint(Directory(write_checkpoint(self.path / name, tensors, config or {})), name)

    def match(self, theirs: Mapping[str, Array], base: Mapping[str, Array]) -> Checkpoint:
        return matched(self.open("theirs", theirs), self.open("base", base))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def read(checkpoint: Checkpoint) -> dict[str, Array]:
    with FileReader() as reader:
        return {
            name: source.read(0, int(np.prod(source.shape)), reader, np.dtype(np.float32)).reshape(source.shape)
            for name, source in checkpoint.tensors.items()
        }


def assert_same(checkpoint: Checkpoint, wanted: Mapping[str, Array]) -> None:
    found = read(checkpoint)
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


PREFIXES = {
    "bert": ((r"^model\.layers", "bert.encoder.layer"), (r"^model\.", "bert."), (r"^lm_head", "cls.predictions")),
    "bare": ((r"^model\.", ""),),
    "transformer": ((r"^model\.", "transformer."),),
    "vlm 4": ((r"^model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head")),
    "vlm 5": ((r"^model\.", "model.language_model."),),
    "other last part": ((r"^model\.layers", "decoder.blocks"), (r"^model\.", "decoder.")),
    "numbered": ((r"^", "0.auto_model."),),
}


@pytest.mark.parametrize("first", PREFIXES)
@pytest.mark.parametrize("second", PREFIXES)
def test_prefixes_are_told_by_the_stacks(first: str, second: str, folder: Folder) -> None:
    model = decoder()
    theirs, base = renamed(model, *PREFIXES[first]), renamed(model, *PREFIXES[second])
    seen = folder.match(theirs, base)
    head = {name for name in base if "lm_head" in name or "cls" in name}
    found = read(seen)
    # A head that is called something else altogether is nobody's counterpart; it keeps its name.
    assert {name for name in base if name not in found} <= head
    for name in found.keys() & base.keys():
        np.testing.assert_array_equal(found[name], base[name], err_msg=name)
    assert len(found) == len(base)
    if first != second:
        assert "theirs: " in seen.notes[0]
        assert "matched to the names of base (" in seen.notes[0]


def tower(count: int = 2, rows: int = 5) -> dict[str, Array]:
    names = ("norm1.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    blocks = {f"visual.blocks.{i}.{name}": values(rows, 3) for i in range(count) for name in names}
    return blocks | {"visual.patch_embed.proj.weight": values(rows, 3), "visual.merger.mlp.weight": values(4, rows)}


def test_parts_of_models_are_told_apart(folder: Folder) -> None:
    """transformers 4 and 5 name both towers of a Qwen2-VL differently, and swap what `model` means."""
    four = decoder() | tower()
    five = renamed(four, (r"^model\.", "model.language_model."), (r"^visual", "model.visual"))
    assert_same(folder.match(four, five), five)
    folder.path = folder.path / "back"
    seen = folder.match(five, four)
    assert_same(seen, four)
    assert "(model.language_model.* as model.*, model.* as *)" in seen.notes[0]


def test_a_text_model_meets_the_text_part_of_another(folder: Folder) -> None:
    text = decoder()
    base = renamed(decoder(), (r"^model\.", "model.language_model.")) | tower()
    seen = folder.match(text, base)
    assert_same(seen, renamed(text, (r"^model\.", "model.language_model.")))


def test_stacks_of_one_kind_are_told_by_their_names_and_shapes(folder: Folder) -> None:
    names = ("fc1.weight", "fc2.weight", "fc3.weight")
    same = {
        f"{kind}_model.layers.{i}.{name}": values(3, 3) for kind in ("text", "image") for i in (0, 1) for name in names
    }
    base = renamed(same, (r"^", "clip."))
    assert_same(folder.match(same, base), base)
    folder.path = folder.path / "shapes"
    theirs = {f"a.layers.{i}.{name}": values(3, 3) for i in (0, 1) for name in names}
    base = {f"x.h.{i}.{name}": values(4, 4) for i in (0, 1) for name in names}
    base |= {f"y.h.{i}.{name}": theirs[f"a.layers.{i}.{name}"] for i in (0, 1) for name in names}
    assert_same(folder.match(theirs, base), {name: tensor for name, tensor in base.items() if name.startswith("y")})


def test_a_stack_that_could_be_either_of_two_is_refused(folder: Folder) -> None:
    names = ("fc1.weight", "fc2.weight", "fc3.weight")
    theirs = {f"a.layers.{i}.{name}": values(3, 3) for i in (0, 1) for name in names}
    base = {f"{kind}.h.{i}.{name}": values(3, 3) for kind in ("x", "y") for i in (0, 1) for name in names}
    with pytest.raises(PlanError, match="more than one way") as caught:
        folder.match(theirs, base)
    assert "rename" in (caught.value.fix or "")
    assert "theirs" in (caught.value.where or "")


def test_a_tensor_outside_the_layers_that_could_be_either_of_two_is_refused(folder: Folder) -> None:
    theirs = decoder() | {"pooler.dense.weight": values(3, 3)}
    base = renamed(decoder(), (r"^model\\.", "")) | {f"{kind}.pooler.dense.weight": values(3, 3) for kind in ("x", "y")}
    with pytest.raises(PlanError, match="more than one way") as caught:
        folder.match(theirs, base)
    assert caught.value.found == "pooler.dense.weight could be x.pooler.dense.weight or y.pooler.dense.weight"


def test_a_tensor_is_not_matched_by_its_shape_alone(folder: Folder) -> None:
    theirs = decoder() | {"cls.transform.dense.weight": values(3, 3)}
    base = renamed(decoder(), (r"^model\.", "")) | {"pooler.dense.weight": values(3, 3)}
    seen = folder.match(theirs, base)
    assert "pooler.dense.weight" not in seen.tensors
    assert "cls.transform.dense.weight" in seen.tensors


def test_spellings(folder: Folder) -> None:
    theirs = {"bert.encoder.layer.0.LayerNorm.gamma": values(3), "bert.encoder.layer.0.LayerNorm.beta": values(3),
              "bert.encoder.layer.0.dense.weight": values(3, 3), "embed_out.weight": values(4, 3)}  # fmt: skip
    rules = (("gamma", "weight"), ("beta", "bias"), ("embed_out", "lm_head"))
    assert_same(folder.match(theirs, renamed(theirs, *rules)), renamed(theirs, *rules))
    folder.path = folder.path / "back"
    assert_same(folder.match(renamed(theirs, *rules), theirs), theirs)


@pytest.mark.parametrize("leaf", ["qkv_proj", "Wqkv", "qkv"])
@pytest.mark.parametrize("prefix", ["model.", "", "language_model.model."])
def test_fused_and_split_meet(leaf: str, prefix: str, folder: Folder) -> None:
    split = decoder()
    whole = renamed(fused(split, leaf=leaf), (r"^model\.", prefix))
    seen = folder.match(whole, split)
    assert_same(seen, split)
    assert re.search(r"; 16 of them joined from pieces or cut from fused ones$", seen.notes[0])
    # Rows that lie together are read as they lie: nothing stands between the engine and the file.
    assert all(isinstance(source, Stored) for source in seen.tensors.values())
    folder.path = folder.path / "back"
    assert_same(folder.match(split, whole), whole)


def test_attention_as_torch_names_it(folder: Folder) -> None:
    split = decoder()
    whole = renamed(fused(split, leaf="in_proj"), (r"in_proj\.(weight|bias)", r"in_proj_\1"))
    assert_same(folder.match(whole, split), split)
    folder.path = folder.path / "back"
    assert_same(folder.match(split, whole), whole)
    # Mamba's in_proj is something else.
    assert {"a.0.in_proj.weight"} == set(
        Folder(folder.path / "m")
        .match({"a.0.in_proj.weight": values(6, 2)}, {"a.0.q_proj.weight": values(2, 2)})
        .tensors
    )


MIXTRAL = ((r"\.mlp\.", ".block_sparse_moe."), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))


@pytest.mark.parametrize("rules", [(), MIXTRAL], ids=["qwen", "mixtral"])
def test_experts_stacked_and_one_by_one(rules: tuple[tuple[str, str], ...], folder: Folder) -> None:
    single = decoder(experts=3)
    single |= {f"model.layers.{layer}.mlp.gate.weight": values(3, HIDDEN) for layer in (0, 1)}
    four, five = renamed(single, *rules), stacked(single)
    assert_same(folder.match(four, five), five)
    folder.path = folder.path / "back"
    seen = folder.match(five, four)
    assert_same(seen, four)
    assert all(isinstance(source, Stored) for source in seen.tensors.values())


def test_prefix_spelling_and_experts_at_once(folder: Folder) -> None:
    single = decoder(experts=2)
    four = renamed(single, *MIXTRAL, (r"^model\.", "language_model.model."))
    five = renamed(stacked(single), (r"^model\.", "model.language_model."))
    assert_same(folder.match(four, five), five)
    folder.path = folder.path / "back"
    assert_same(folder.match(five, four), four)


def test_layers_that_the_base_lacks_come_in_its_layout_too(folder: Folder) -> None:
    long = decoder(4, experts=2)
    base = renamed(fused(stacked(decoder(2, experts=2))), (r"^model\.", "transformer."))
    assert_same(folder.match(long, base), renamed(fused(stacked(long)), (r"^model\.", "transformer.")))
    folder.path = folder.path / "back"
    whole = fused(stacked(long))
    assert_same(folder.match(whole, decoder(2, experts=2)), long)


def test_nothing_is_lost_when_only_some_experts_have_counterparts(folder: Folder) -> None:
    single = decoder(1, experts=3)
    five = stacked(single)
    base = {name: tensor for name, tensor in single.items() if ".experts.2." not in name}
    assert_same(folder.match(five, base), single)


def test_what_matches_already_is_left_alone(folder: Folder) -> None:
    model = decoder()
    more = folder.open("more", {**model, "extra.weight": values(2)})
    same = folder.open("same", model)
    assert matched(same, same) is same
    assert matched(more, same) is more
    assert matched(same, more) is same
    strangers = folder.open("strangers", {"h.0.c_attn.weight": values(3, 9), "wte.weight": values(5, 3)})
    assert matched(strangers, same) is strangers


@pytest.mark.parametrize("leaf", ["query_key_value", "wqkv", "c_attn"])
@pytest.mark.parametrize("back", [False, True])
def test_orders_that_are_not_known_are_refused(leaf: str, back: bool, folder: Folder) -> None:
    split, whole = decoder(), fused(decoder(), leaf=leaf)
    with pytest.raises(PlanError, match="order inside the fused tensor is not known") as caught:
        folder.match(split, whole) if back else folder.match(whole, split)
    assert leaf in caught.value.what
    assert caught.value.found
    assert caught.value.fix


def grouped(tensors: Mapping[str, Array], leaf: str, groups: int) -> dict[str, Array]:
    """Queries, keys and values in one tensor: for each group of heads its queries, its keys, its values."""
    result = dict(tensors)
    for name in [name for name in tensors if ".q_proj." in name]:
        parts = [result.pop(name.replace("q_proj", piece)) for piece in ("q_proj", "k_proj", "v_proj")]
        shares = [part.reshape(groups, part.shape[0] // groups, *part.shape[1:]) for part in parts]
        result[name.replace("q_proj", leaf)] = np.concatenate(shares, 1).reshape(-1, *parts[0].shape[1:])
    return result


INTERNLM2 = (
    (r"self_attn\.wqkv", "attention.wqkv"), (r"self_attn\.o_proj", "attention.wo"),
    (r"mlp\.gate_proj", "feed_forward.w1"), (r"mlp\.up_proj", "feed_forward.w3"),
    (r"mlp\.down_proj", "feed_forward.w2"), ("input_layernorm", "attention_norm"),
    ("embed_tokens", "tok_embeddings"), (r"^lm_head", "output"),
)  # fmt: skip


def test_internlm2_meets_llama(folder: Folder) -> None:
    """Its `wqkv` holds, for each head of keys, the queries that share it, the key and the value."""
    split = decoder()
    whole = renamed(grouped(split, "wqkv", 2), *INTERNLM2)
    config = {"model_type": "internlm2", "num_key_value_heads": 2, "num_attention_heads": 4}
    llama, internlm = folder.open("llama", split), folder.open("internlm", whole, config)
    assert_same(matched(internlm, llama), split)
    assert_same(matched(llama, internlm), whole)


@pytest.mark.parametrize(("kind", "key"), [("gpt_neox", "num_attention_heads"), ("bloom", "n_head")])
def test_queries_keys_and_values_head_by_head(kind: str, key: str, folder: Folder) -> None:
    split = {name: tensor for name, tensor in decoder().items() if "k_proj" not in name and "v_proj" not in name}
    for name in [name for name in split if "q_proj" in name]:
        split |= {name.replace("q_proj", other): values(*split[name].shape) for other in ("k_proj", "v_proj")}
    whole = grouped(split, "query_key_value", 4)
    fused_, apart = folder.open("fused", whole, {"model_type": kind, key: 4}), folder.open("apart", split)
    assert_same(matched(fused_, apart), split)
    assert_same(matched(apart, fused_), whole)
    other = folder.open("other", renamed(whole, (r"^model\.", "transformer.")))  # fused on both sides, no word of heads
    assert_same(matched(other, fused_), whole)


def test_pieces_that_do_not_make_up_the_tensor_are_refused(folder: Folder) -> None:
    split = decoder()
    whole = fused(decoder())
    name = "model.layers.0.self_attn.qkv_proj.weight"
    whole[name] = values(whole[name].shape[0] + 1, HIDDEN)
    with pytest.raises(PlanError, match=re.escape(name)):
        folder.match(split, whole)
    folder.path = folder.path / "back"
    with pytest.raises(PlanError, match=r"_proj\.weight' "):
        folder.match(whole, split)


def turned(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_experts_held_as_in_and_out_meet_all_others(prefix: str, folder: Folder) -> None:
    """Qwen3-VL-MoE and Llama 4 hold [expert, in, out]: told by the two stacks' shapes, under any names."""
    single = decoder(2, experts=3)
    five = stacked(single)
    other = renamed(turned(five), (r"^model\.", prefix))
    for base in (single, five):
        assert_same(folder.match(other, base), base)
        assert_same(folder.match(base, other), other)


def test_gates_and_ups_that_alternate_are_not_taken_apart(folder: Folder) -> None:
    """gpt-oss holds [expert, in, out], every other column a gate; its biases tell."""
    single = {k: v for k, v in decoder(1, experts=2).items() if "experts" in k or "norm" in k}
    five = turned(stacked(single))
    bias = {"model.layers.0.mlp.experts.gate_up_proj_bias": values(2, 8)}
    for theirs, base in ((single, five | bias), (five | bias, single)):
        with pytest.raises(PlanError, match="order inside the fused tensor is not known") as caught:
            folder.match(theirs, base)
        assert "gpt-oss" in (caught.value.found or "")


def test_codegen_keeps_its_projections_in_blocks(folder: Folder) -> None:
    split = renamed(decoder(), (r"^model\.layers", "transformer.h"), (r"^model\.", "transformer."))
    whole = renamed(fused(split), (r"self_attn\.qkv", "attn.qkv"))
    with pytest.raises(PlanError, match="order inside the fused tensor is not known"):
        folder.match(whole, split)


def test_attention_by_any_name(folder: Folder) -> None:
    split = decoder()
    whole = renamed(fused(split, leaf="Wqkv"), (r"self_attn\.", "attn."), (r"attn\.o_proj", "attn.out_proj"))
    assert_same(folder.match(whole, split), split)
    folder.path = folder.path / "back"
    assert_same(folder.match(split, whole), whole)


def test_two_spellings_of_one_name_in_one_checkpoint_stay_two_tensors(folder: Folder) -> None:
    theirs = decoder() | {"a.mlp.shared_mlp.w": values(2), "a.mlp.shared_expert.w": values(2)}
    base = renamed(decoder(), (r"^model\.", "")) | {"a.mlp.shared_experts.w": values(2)}
    wanted = renamed(decoder(), (r"^model\.", "")).keys() | {"a.mlp.shared_mlp.w", "a.mlp.shared_expert.w"}
    assert folder.match(theirs, base).tensors.keys() == wanted
    folder.path = folder.path / "base"
    seen = folder.match(base, theirs)
    assert seen.tensors.keys() == decoder().keys() | {"a.mlp.shared_experts.w"}


def test_nothing_is_lost_where_a_leftover_would_take_anothers_name(folder: Folder) -> None:
    more = {"bert.pooler.dense.weight": values(3, 3), "bert.x.weight": values(1), "x.weight": values(2)}
    theirs = renamed(decoder(), (r"^model\.", "bert.")) | more | {"pooler.dense.weight": values(2, 2)}
    base = renamed(decoder(), (r"^model\.", "")) | {"pooler.dense.weight": values(2, 2)}
    wanted = renamed(decoder(), (r"^model\.", "")).keys() | more.keys() | {"pooler.dense.weight"}
    seen = folder.match(theirs, base)
    assert seen.tensors.keys() == wanted
    found = read(seen)
    for name in more.keys() | {"pooler.dense.weight"}:
        np.testing.assert_array_equal(found[name], theirs[name])
