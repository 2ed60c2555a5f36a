"""Options of an extraction on NumPy-made Llamas: ranks, filters, dtypes and refusals, checked on the files written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest

from cuvee.errors import CuveeError
from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora
from cuvee.options import MergeOptions
from support.adapter_files import PREFIX, dense, factors, write_adapter
from support.checkpoints import Array, read_file
from support.tiny_models import LAYERS, Family, llama_state, make_llama, save_llama
from support.tuned import make_pair

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def extract(family: Family, out: Path, **options: Any) -> Any:
    run = MergeOptions(overwrite=True, threads=2)
    return extract_lora(str(family.path("a")), str(family.path("base")), out, ExtractOptions(**options), run).extracted


def changes(family: Family) -> dict[str, Array]:
    tuned, base = family.exact("a"), family.exact("base")
    return {name: tuned[name] - base[name] for name in base}


def singular(family: Family) -> dict[str, Array]:
    """The singular values of every matrix's change."""
    matrices = {name: c for name, c in changes(family).items() if any(m in name for m in MATRICES)}
    return {name: np.linalg.svd(change, compute_uv=False) for name, change in matrices.items()}


def best_error(change: Array, rank: int) -> float:
    s = np.linalg.svd(change, compute_uv=False)
    return float((s[rank:] ** 2).sum())


def test_each_matrix_gets_its_best_factors(tmp_path: Path, llama: Family) -> None:
    found = extract(llama, tmp_path / "out", max_rank=3)
    got, wanted = dense(tmp_path / "out"), changes(llama)
    assert set(got) == {name.removesuffix(".weight") for name in wanted if any(m in name for m in MATRICES)}
    for each in found.decomposed:
        change = wanted[each.name]
        missing = float(np.square(change - got[each.name.removesuffix(".weight")]).sum())
        assert missing == pytest.approx(best_error(change, 3), rel=2e-3)
        assert each.missing == pytest.approx(missing, rel=1e-4)
        assert each.total == pytest.approx(float(np.square(change).sum()), rel=1e-6)


def test_energy_gives_each_matrix_the_smallest_rank_that_is_enough(tmp_path: Path, llama: Family) -> None:
    found = extract(llama, tmp_path / "out", energy=0.8)
    ranks = {}
    for each in found.decomposed:
        s = np.linalg.svd(changes(llama)[each.name], compute_uv=False) ** 2
        ranks[each.name] = 1 + int(np.argmax(np.cumsum(s) >= 0.8 * s.sum()))
    assert {each.name: each.rank for each in found.decomposed} == ranks
    assert len(set(ranks.values())) > 1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["alpha_pattern"] == config["rank_pattern"] != {}
    dense(tmp_path / "out")  # checks every rank against the config's


def test_max_bytes_spends_the_budget_where_it_counts(tmp_path: Path, llama: Family) -> None:
    whole = sum(a.nbytes for n, a in llama.state("a").items() if not any(m in n for m in MATRICES))
    budget = whole + 9000
    found = extract(llama, tmp_path / "out", max_bytes=f"{budget}")
    sizes = sum(a.nbytes for a in read_file(tmp_path / "out" / "adapter_model.safetensors").values())
    assert budget - 4 * 96 < sizes <= budget
    # No single rank taken from one matrix and given to another of the same cost would have kept more.
    spectra = {
        n: np.linalg.svd(c, compute_uv=False) ** 2 for n, c in changes(llama).items() if any(m in n for m in MATRICES)
    }
    ranks = dict.fromkeys(spectra, 0) | {each.name: each.rank for each in found.decomposed}
    shapes = {name: a.shape for name, a in llama.state("a").items()}
    for one, more in spectra.items():
        for other, less in spectra.items():
            if sum(shapes[one]) == sum(shapes[other]) and ranks[other] and ranks[one] < len(more):
                assert less[ranks[other] - 1] >= more[ranks[one]] * (1 - 1e-9)


@pytest.mark.parametrize("embed", [False, True])
def test_max_bytes_counts_what_a_tied_head_takes(tmp_path: Path, embed: bool) -> None:
    base, tuned = make_pair(tmp_path, "qwen2")
    options = ExtractOptions(max_bytes="30k", embed_lora=embed)
    extract_lora(str(tuned), str(base), tmp_path / "out", options)
    written = read_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("lm_head" in name for name in written)
    assert 29_000 < sum(a.nbytes for a in written.values()) <= 30_000


def test_what_no_module_answers_to_is_told(tmp_path: Path, llama: Family) -> None:
    options = {"include_regex": ("q_proj", "q_prj"), "exclude_regex": ("mpl",), "save_module": ("lm_haed", "lm_head")}
    assert [line.split(" has")[0] for line in extract(llama, tmp_path / "out", **options).warnings] == [
        "-e 'mpl'", "-i 'q_prj'", "--save-module lm_haed",
    ]  # fmt: skip


def test_small_singular_values_are_left_out(tmp_path: Path, llama: Family) -> None:
    everything = {
        n: np.linalg.svd(c, compute_uv=False) for n, c in changes(llama).items() if any(m in n for m in MATRICES)
    }
    epsilon = float(np.median(np.concatenate(list(everything.values()))))
    found = extract(llama, tmp_path / "out", max_rank=64, sv_epsilon=epsilon, exact=True)
    assert {each.name: each.rank for each in found.decomposed} == {
        n: int((s > epsilon).sum()) for n, s in everything.items()
    }


def test_bfloat16_factors_and_their_honest_error(tmp_path: Path, llama: Family) -> None:
    found = extract(llama, tmp_path / "out", max_rank=64, exact=True, dtype="bfloat16")
    tensors = read_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.dtype for n, t in tensors.items() if "lora_" in n} == {np.dtype(ml_dtypes.bfloat16)}
    assert {t.dtype for n, t in tensors.items() if "lora_" not in n} == {np.dtype(np.float32)}  # whole ones stay exact
    missing = sum(float(np.square(changes(llama)[f"{n}.weight"] - d).sum()) for n, d in dense(tmp_path / "out").items())
    total = sum(float(np.square(c).sum()) for c in changes(llama).values())
    assert found.error == pytest.approx(np.sqrt(missing / total), rel=1e-3)
    assert 1e-4 < found.error < 1e-2


def names(out: Path) -> set[str]:
    return {name.removeprefix(PREFIX) for name in read_file(out / "adapter_model.safetensors")}


def test_filters_choose_modules(tmp_path: Path, llama: Family) -> None:
    found = extract(llama, tmp_path / "i", include_regex=("q_proj", "layers.1.*up_proj"), exclude_regex=("layers.0",))
    modules = {f"model.layers.{i}.self_attn.q_proj" for i in range(1, LAYERS)} | {"model.layers.1.mlp.up_proj"}
    factor_names = {f"{m}.lora_{x}.weight" for m in modules for x in "AB"}
    assert names(tmp_path / "i") == factor_names | {"model.embed_tokens.weight", "lm_head.weight"}
    left = [each for each in found.held if not each.rank and not each.whole]
    assert found.error > 0.1
    assert len(left) + len(modules) + 2 == len(changes(llama)) - found.unchanged


def test_modules_saved_whole_and_left_out(tmp_path: Path, llama: Family) -> None:
    extract(llama, tmp_path / "out", save_module=("q_proj", "1.mlp.up_proj"), skip_undecomposable=True)
    stored = read_file(tmp_path / "out" / "adapter_model.safetensors")
    whole = {n.removeprefix(PREFIX) for n in stored if "lora_" not in n}
    q = {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(LAYERS)}
    assert whole == q | {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert set(config["modules_to_save"]) == {"embed_tokens", "lm_head", "q_proj", "1.mlp.up_proj"}
    assert "up_proj" not in config["target_modules"]
    assert {"0.mlp.up_proj", "2.mlp.up_proj"} < set(config["target_modules"])
    for name in q:
        assert np.array_equal(stored[PREFIX + name], llama.state("a")[name])


def test_the_same_bytes_whatever_the_threads(tmp_path: Path, llama: Family) -> None:
    weights = []
    for threads in (1, 3):
        out = tmp_path / str(threads)
        run = MergeOptions(threads=threads)
        extract_lora(str(llama.path("a")), str(llama.path("base")), out, ExtractOptions(max_rank=4), run)
        weights.append((out / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_card_table_and_picture_tell_the_error(tmp_path: Path, llama: Family) -> None:
    found = extract(llama, tmp_path / "out", max_rank=5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"**{found.error:.4g}**" in card
    assert f"| 5 | {found.error:.4g} |" in card
    assert "library_name: peft" in card
    assert str(tmp_path) not in card
    picture = (tmp_path / "out" / "error_against_rank.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert picture.count("<circle") == 5  # ranks 0, 1, 2, 4, 5
    kept = read_file(tmp_path / "out" / "adapter_singular_values.safetensors")
    change = changes(llama)["model.layers.0.mlp.up_proj.weight"]
    exact = np.linalg.svd(change, compute_uv=False)
    assert kept["model.layers.0.mlp.up_proj.weight.values"] == pytest.approx(exact[:5], rel=1e-3)


def other(folder: Path, change: Mapping[str, Array | None]) -> Path:
    state = {**llama_state(), **change}
    save_llama(folder, {k: v for k, v in state.items() if v is not None}, layers=LAYERS)
    return folder


def refused(tmp_path: Path, model: Path, base: Path, **options: Any) -> str:
    with pytest.raises(CuveeError) as caught:
        extract_lora(str(model), str(base), tmp_path / "refused", ExtractOptions(**options))
    assert not (tmp_path / "refused").exists()
    assert not (tmp_path / "refused.partial").exists()
    return str(caught.value)


def test_what_cannot_be_extracted_is_refused(tmp_path: Path, llama: Family) -> None:
    base, tuned = llama.path("base"), llama.path("a")
    q = "model.layers.1.self_attn.q_proj.weight"
    wide = other(tmp_path / "wide", {q: np.zeros((18, 16), np.float32)})
    lacking = other(tmp_path / "lacking", {q: None})
    broken = other(tmp_path / "broken", {q: np.full((16, 16), np.nan, np.float32)})
    raw = "model.layers.1.self_attn.temperature"
    ones, twos = (other(tmp_path / f"raw{n}", {raw: np.full(3, n, np.float32)}) for n in (1, 2))
    moved = np.ones((16, 16), np.float32)
    both = other(tmp_path / "both", {raw: np.zeros(3, np.float32), q: moved})
    assert "beside factors of 'model.layers.1.self_attn.q_proj'" in refused(tmp_path, both, ones)
    # A raw parameter by itself is saved with the module that holds it.
    assert extract_lora(str(twos), str(ones), tmp_path / "two").extracted.error == 0
    assert "[16, 16] as in" in refused(tmp_path, wide, base)
    assert f"no {q}" in refused(tmp_path, lacking, base)
    assert q in refused(tmp_path, broken, base)
    assert "the same checkpoint" in refused(tmp_path, base, base)
    assert "do not differ" in refused(tmp_path, tuned, base, exclude_regex=("",))
    assert "matches -i 'no such'" in refused(tmp_path, tuned, base, include_regex=("no such",))
    assert "holds no factors" in refused(tmp_path, tuned, base, max_bytes="10k")
    assert "no checkpoint at" in refused(tmp_path, tmp_path / "nowhere", base)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"energy": 1.5}, "0 to 1"),
        ({"energy": 0.5, "max_bytes": "1G"}, "one of them"),
        ({"max_rank": -1}, "1 or more"),
        ({"sv_epsilon": -1.0}, "negative"),
        ({"dtype": "int8"}, "float32, bfloat16 or float16"),
        ({"exclude_regex": ("(",)}, "regular expression"),
        ({"max_bytes": "much"}, "not a size"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(CuveeError, match=told):
        ExtractOptions(**options)


def test_a_decomposition_that_outgrows_memory_is_refused_and_fewer_run_at_once_near_it(tmp_path: Path) -> None:
    wide = make_llama(tmp_path / "wide", names=("base", "a"), hidden=128, layers=1, vocabulary=8)
    names = (str(wide.path("a")), str(wide.path("base")))
    with pytest.raises(CuveeError, match="does not fit the memory budget") as caught:
        # Three copies of 128 x 128 doubles alone take 393,216 bytes.
        extract_lora(*names, tmp_path / "o", ExtractOptions(exact=True, max_rank=2), MergeOptions(memory="390k"))
    assert "decomposing" in str(caught.value)
    enough = MergeOptions(memory="2M", threads=2, overwrite=True)
    extract_lora(*names, tmp_path / "o", ExtractOptions(exact=True, max_rank=2), enough)


def test_an_adapter_comes_out_as_it_went_in(tmp_path: Path, llama: Family) -> None:
    # Extracted from base+adapter: what was put on is found again, module by module and at its own rank.
    sides = {f"model.layers.{i}.mlp.up_proj": (32, 16) for i in range(LAYERS)}
    ranks = {name: 2 + number for number, name in enumerate(sides)}
    adapter = write_adapter(tmp_path / "adapter", ranks, sides, seed=3, alpha=0.1)
    base = str(llama.path("base"))
    options = ExtractOptions(sv_epsilon=1e-4)
    found = extract_lora(f"{base}+{adapter}", base, tmp_path / "out", options).extracted
    assert found.error < 1e-5
    assert {name: down.shape[0] for name, (down, _, _) in factors(tmp_path / "out").items()} == ranks
    for name, update in dense(adapter).items():
        assert dense(tmp_path / "out")[name] == pytest.approx(update, abs=1e-5 * float(np.abs(update).max()))
