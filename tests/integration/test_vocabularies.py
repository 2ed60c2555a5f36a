"""Merges of models whose tokenizers differ: every row, every file, every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

import cuvee
from cuvee.errors import CuveeError, VocabularyError
from support.adapters import write_adapter
from support.tiny_models import State
from support.vocabularies import GRAPE, WINE, ids_in, save_model, save_tokenizer, state_in, tokenizer

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KIND = "byte-level BPE"
OPTIONS = cuvee.MergeOptions(threads=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vocabularies")
    a = tokenizer(KIND, WINE, 300, ["<|a|>", "<|s|>"])
    b = tokenizer(KIND, GRAPE, 312, ["<|s|>", "<|b|>"])
    c = tokenizer(KIND, WINE + " " + GRAPE, 306, ["<|c|>", "<|b|>"])
    eos = {"eos_token_id": a.token_to_id("<|s|>"), "bos_token_id": a.token_to_id("<|a|>")}
    return {
        "a": save_model(folder / "a", a, seed=1, config=eos, eos_token="<|s|>"),
        "b": save_model(folder / "b", b, seed=2, eos_token="<|b|>", config={"eos_token_id": b.token_to_id("<|b|>")}),
        "c": save_model(folder / "c", c, seed=3),
        "padded": save_model(folder / "padded", a, seed=4, rows=a.get_vocab_size() + 9),
        "short": save_model(folder / "short", a, seed=5, rows=a.get_vocab_size() - 1),
    }


def merge(out: Path, models: dict[str, Path], names: str, options: cuvee.MergeOptions = OPTIONS, **more: Any) -> Any:
    """A linear merge of the named models with weights 1, 2, 3 (not normalised)."""
    listed = names.split()
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(models[name]), "parameters": {"weight": i}} for i, name in enumerate(listed, 1)],
        "parameters": {"normalize": False},
        **more,
    }
    return cuvee.merge(recipe, out, options)


class Oracle:
    """What the rules say, token by token."""

    def __init__(self, models: dict[str, Path], names: str, base: str | None) -> None:
        self.states = {name: state_in(models[name]) for name in names.split()}
        self.ids = {name: ids_in(models[name]) for name in names.split()}
        self.base = base

    def own(self, name: str, token: str, key: str) -> Any:
        number = self.ids[name].get(token)
        table = self.states[name][key]
        return table[number].astype(np.float64) if number is not None and number < len(table) else None

    def seen(self, name: str, token: str, key: str) -> Any:
        """The row that a model has for a token once all share a vocabulary."""
        own = self.own(name, token, key)
        if own is not None:
            return own
        if self.base and (base := self.own(self.base, token, key)) is not None:
            return base
        having = [found for other in self.states if (found := self.own(other, token, key)) is not None]
        return np.mean(having, axis=0)

    def merged(self, token: str, key: str) -> Any:
        return sum(weight * self.seen(name, token, key) for weight, name in enumerate(self.states, 1))


def assert_rows(out: Path, oracle: Oracle) -> State:
    state, ids = state_in(out), ids_in(out)
    config = json.loads((out / "config.json").read_text())
    assert len(state[EMBED]) == len(state[HEAD]) == config["vocab_size"] > max(ids.values())
    for key in (EMBED, HEAD):
        exact = np.stack([oracle.merged(token, key) for token in ids])
        got = state[key][list(ids.values())]
        np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
    return state


@pytest.mark.parametrize("base", [None, "a", "b", "c"])
@pytest.mark.parametrize("field", ["tokenizer", "tokenizer_source"])
def test_union(base: str | None, field: str, models: dict[str, Path], tmp_path: Path) -> None:
    more: dict[str, Any] = {"tokenizer": {"source": "union"}} if field == "tokenizer" else {field: "union"}
    if base:
        more["base_model"] = str(models[base])
    merge(tmp_path / "out", models, "a b c", **more)
    tokens = set().union(*(ids_in(models[name]) for name in "abc"))
    found = ids_in(tmp_path / "out")
    assert found.keys() == tokens
    first = ids_in(models[base or "a"])
    assert {token: found[token] for token in first} == first
    assert_rows(tmp_path / "out", Oracle(models, "a b c", base))


@pytest.mark.parametrize("source", ["base", "c"])
def test_one_models_tokenizer(source: str, models: dict[str, Path], tmp_path: Path) -> None:
    wanted = {"source": source if source == "base" else str(models[source])}
    merge(tmp_path / "out", models, "a b c", base_model=str(models["b"]), tokenizer=wanted)
    home = models["b" if source == "base" else source]
    assert ids_in(tmp_path / "out") == ids_in(home)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (home / file).read_bytes()
    assert_rows(tmp_path / "out", Oracle(models, "a b c", "b"))


def test_a_tokenizer_of_a_model_that_is_not_merged(models: dict[str, Path], tmp_path: Path) -> None:
    made = Tokenizer.from_file(str(models["c"] / "tokenizer.json"))
    home = save_tokenizer(tmp_path / "elsewhere", made)
    known = {"c": models["c"], "b": models["b"]}
    merge(tmp_path / "out", known, "b c", tokenizer={"source": str(home)})
    assert ids_in(tmp_path / "out") == made.get_vocab(with_added_tokens=True)
    assert_rows(tmp_path / "out", Oracle(known, "b c", None))
    with pytest.raises(VocabularyError, match="have a row in none of the models"):
        merge(tmp_path / "no", known, "b", tokenizer={"source": str(models["a"])})


def test_padding_of_the_base_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    merge(tmp_path / "out", models, "padded b", base_model=str(models["padded"]), tokenizer={"source": "base"})
    base, other = state_in(models["padded"]), state_in(models["b"])
    state = assert_rows(tmp_path / "out", Oracle(models, "padded b", "padded"))
    size = len(ids_in(models["padded"]))
    assert len(state[EMBED]) == size + 9 == json.loads((models["padded"] / "config.json").read_text())["vocab_size"]
    for place in range(size, size + 9):  # the other's rows there belong to tokens, or lie beyond its tokens
        theirs = other if place >= len(ids_in(models["b"])) and place < len(other[EMBED]) else base
        np.testing.assert_allclose(state[EMBED][place], base[EMBED][place] + 2 * theirs[EMBED][place], rtol=1e-6)


def test_rows_of_a_multiple_are_means(models: dict[str, Path], tmp_path: Path) -> None:
    merge(tmp_path / "out", models, "a b", tokenizer={"source": "union", "pad_to_multiple_of": 64})
    state = assert_rows(tmp_path / "out", Oracle(models, "a b", None))
    tokens = len(ids_in(tmp_path / "out"))
    assert tokens % 64 != 0
    assert len(state[EMBED]) % 64 == 0
    for key in (EMBED, HEAD):
        mean = state[key][:tokens].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(
            state[key][tokens:], np.tile(mean, (len(state[key]) - tokens, 1)), rtol=1e-5, atol=1e-6
        )


def test_tokens_beyond_the_embedding_are_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    report = merge(tmp_path / "out", models, "short b", base_model=str(models["short"]), tokenizer={"source": "base"})
    assert ids_in(tmp_path / "out").keys() == ids_in(models["short"]).keys() - {"<|s|>"}
    assert any("1 tokens of" in line and "'<|s|>'" in line for line in report.warnings)
    assert_rows(tmp_path / "out", Oracle(models, "short b", "short"))
    merge(tmp_path / "both", models, "short b", base_model=str(models["short"]), tokenizer={"source": "union"})
    assert "<|s|>" in ids_in(tmp_path / "both")
    assert_rows(tmp_path / "both", Oracle(models, "short b", "short"))


def test_single_tokens(models: dict[str, Path], tmp_path: Path) -> None:
    b = str(models["b"])
    tokens = {
        "<|zero|>": {"source": {"kind": "zero"}},
        "<|row|>": {"source": {"kind": "model_token", "model": b, "token_id": 7}},
        "<|as|>": {"source": {"kind": "model_token", "model": b, "token": "<|s|>"}},
        "<|b|>": {"source": b},
        "<|s|>": {"source": b, "force": True},
        "<|a|>": {"source": {"kind": "zero"}},
        "<|c|>": None,
    }
    settings = {"source": "base", "tokens": tokens}
    merge(tmp_path / "out", models, "a b c", base_model=str(models["a"]), tokenizer=settings)
    state, ids = state_in(tmp_path / "out"), ids_in(tmp_path / "out")
    base = ids_in(models["a"])
    assert {token: ids[token] for token in base} == base
    assert ids.keys() - base.keys() == {"<|zero|>", "<|row|>", "<|as|>", "<|b|>", "<|c|>"}
    theirs = state_in(models["b"])[EMBED]
    ours, thirds = state_in(models["a"])[EMBED], state_in(models["c"])[EMBED]
    id_b, id_c = ids_in(models["b"]), ids_in(models["c"])
    want = {
        "<|zero|>": np.zeros(8),
        "<|row|>": 6 * theirs[7],
        "<|as|>": 6 * theirs[id_b["<|s|>"]],
        "<|b|>": 3 * theirs[id_b["<|b|>"]] + 3 * thirds[id_c["<|b|>"]],
        "<|s|>": 6 * theirs[id_b["<|s|>"]],
        "<|a|>": ours[base["<|a|>"]],
        "<|c|>": 6 * thirds[id_c["<|c|>"]],
    }
    for token, values in want.items():
        np.testing.assert_allclose(state[EMBED][ids[token]], values, rtol=1e-6, atol=1e-6, err_msg=token)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"source": "elsewhere"}, "'<|x|>' is to come from elsewhere, which is not merged"),
        ({"source": "@b"}, "no token '<|x|>' with a row"),
        ({"source": {"kind": "model_token", "model": "@b", "token_id": 99999}}, "id 99999 of"),
        ({}, "1 tokens of the output have a row in none of the models: '<|x|>'"),
    ],
)
def test_tokens_that_cannot_be_had(entry: Any, says: str, models: dict[str, Path], tmp_path: Path) -> None:
    filled = json.loads(json.dumps(entry).replace("@b", str(models["b"])))
    with pytest.raises(VocabularyError) as caught:
        merge(tmp_path / "out", models, "a b", tokenizer={"source": "union", "tokens": {"<|x|>": filled}})
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tied_heads_and_half_precision(tmp_path: Path) -> None:
    made = {n: tokenizer(KIND, text, 300, [f"<|{n}|>"]) for n, text in (("a", WINE), ("b", GRAPE))}
    models = {
        n: save_model(tmp_path / n, t, seed=i, tied=True, dtype=np.float16) for i, (n, t) in enumerate(made.items())
    }
    merge(tmp_path / "out", models, "a b", tokenizer={"source": "union"}, base_model=str(models["a"]))
    state, ids = state_in(tmp_path / "out"), ids_in(tmp_path / "out")
    assert HEAD not in state
    tables = {n: (state_in(path)[EMBED], ids_in(path)) for n, path in models.items()}
    for token in ("<|a|>", "<|b|>", "Ġwine", "Ġgrapes", "e"):
        rows = [
            table[own.get(token)] if token in own else next(t[o[token]] for t, o in tables.values() if token in o)
            for table, own in tables.values()
        ]
        exact = rows[0].astype(np.float64) + 2 * rows[1].astype(np.float64)
        np.testing.assert_array_equal(state[EMBED][ids[token]], exact.astype(np.float16))


def test_a_tied_model_takes_the_heads_of_others_for_its_head(tmp_path: Path) -> None:
    a, b = (tokenizer(KIND, WINE, 300, [token]) for token in ("<|a|>", "<|b|>"))
    models = {"a": save_model(tmp_path / "a", a, seed=1, tied=True), "b": save_model(tmp_path / "b", b, seed=2)}
    merge(tmp_path / "out", models, "a b", tokenizer={"source": "union"})
    state, ids = state_in(tmp_path / "out"), ids_in(tmp_path / "out")
    tied, other = state_in(models["a"]), state_in(models["b"])
    for key in (EMBED, HEAD):
        np.testing.assert_allclose(state[key][ids["<|b|>"]], 3 * other[key][b.token_to_id("<|b|>")], rtol=1e-6)
        np.testing.assert_allclose(state[key][ids["<|a|>"]], 3 * tied[EMBED][a.token_to_id("<|a|>")], rtol=1e-6)


def test_an_embedding_and_a_head_of_two_lengths_are_refused(tmp_path: Path) -> None:
    made = {"a": tokenizer(KIND, WINE, 300), "b": tokenizer(KIND, WINE, 300, ["<|b|>"])}
    models = {n: save_model(tmp_path / n, t, seed=1) for n, t in made.items()}
    slices = [{"sources": [{"model": str(models[n]), "layer_range": [0, 1]}]} for n in "ab"]
    recipe = {"merge_method": "passthrough", "slices": slices}
    with pytest.raises(VocabularyError, match="would differ in length"):
        cuvee.merge(recipe, tmp_path / "out", OPTIONS)
    out = cuvee.merge({**recipe, "tokenizer": {"source": "union"}}, tmp_path / "out", OPTIONS).out
    assert len(state_in(out)[EMBED]) == len(state_in(out)[HEAD]) == made["b"].get_vocab_size()


def test_text_reaches_the_vectors_it_reached_before(models: dict[str, Path], tmp_path: Path) -> None:
    """Encoded by the output's tokenizer, tokens of a source have that source's vectors, if only it is merged."""
    for only in ("a", "b"):
        weights = [{"model": str(models[n]), "parameters": {"weight": float(n == only)}} for n in ("a", "b")]
        recipe = {"merge_method": "linear", "models": weights, "tokenizer": {"source": "union"}}
        out = cuvee.merge(recipe, tmp_path / only, OPTIONS).out
        table, own = state_in(models[only])[EMBED], ids_in(models[only])
        state = state_in(out)[EMBED]
        encode = Tokenizer.from_file(str(out / "tokenizer.json")).encode
        source = Tokenizer.from_file(str(models[only] / "tokenizer.json")).encode
        seen = 0
        for text in (WINE, GRAPE, "<|s|> wine <|a|> grapes <|b|>", "123 über"):
            found = encode(text)
            for token, number in zip(found.tokens, found.ids, strict=True):
                if token in own:
                    np.testing.assert_array_equal(state[number], table[own[token]])
                    seen += 1
        assert seen > 40
        if only == "a":  # the base's own text is cut as before, so the same text gives the same vectors
            assert np.array_equal(state[encode(WINE).ids], table[source(WINE).ids])


@pytest.mark.parametrize("settings", [{"threads": 3}, {"processes": 2}, {"memory": "32MiB"}])
def test_blocks_and_threads_change_no_byte(settings: Any, models: dict[str, Path], tmp_path: Path) -> None:
    more = {"tokenizer": {"source": "union", "pad_to_multiple_of": 64}, "merge_method": "ties"}
    more |= {"parameters": {"weight": 1.0, "density": 0.5}, "base_model": str(models["a"])}
    merge(tmp_path / "plain", models, "a b c", **more)
    merge(tmp_path / "other", models, "a b c", cuvee.MergeOptions(**settings), **more)
    plain, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "other"))
    assert plain == other


def test_special_ids_follow_a_foreign_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    merge(tmp_path / "out", models, "a b", base_model=str(models["a"]), tokenizer={"source": str(models["b"])})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    new = ids_in(models["b"])
    assert config["eos_token_id"] == new["<|s|>"], "the token stays, its id follows"
    assert config["bos_token_id"] is None or config["bos_token_id"] == 1, "<|a|> is gone: what b says"
    old = ids_in(models["a"])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    by_id = {number: token for token, number in old.items()}
    assert generation["eos_token_id"] == new[by_id[2]]


def test_sizes_that_differ_are_refused_with_the_tokens(tmp_path: Path) -> None:
    """32000 tokens against 32007, as of Llama 2 and a fine-tune with seven tokens more."""
    made = Tokenizer.from_str(tokenizer("WordLevel", WINE, 99).to_str())
    made.add_tokens([f"w{i}" for i in range(32000 - made.get_vocab_size())])
    save_model(tmp_path / "a", made, seed=1, hidden=4)
    made.add_special_tokens([AddedToken(f"<|extra_{i}|>") for i in range(7)])
    save_model(tmp_path / "b", made, seed=2, hidden=4)
    models = {name: tmp_path / name for name in "ab"}
    with pytest.raises(VocabularyError) as caught:
        merge(tmp_path / "out", models, "a b")
    for words in ("7 tokens only in", "'<|extra_0|>', '<|extra_1|>'", "[32000, 4]", "[32007, 4]", "source: union"):
        assert words in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    report = merge(tmp_path / "out", models, "a b", cuvee.MergeOptions(unsafe_truncate_embeddings=True))
    assert any("cut to 32000 rows" in line for line in report.warnings)
    state = state_in(tmp_path / "out")
    exact = state_in(models["a"])[EMBED] + 2 * state_in(models["b"])[EMBED][:32000]
    np.testing.assert_allclose(state[EMBED], exact, rtol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 32000 == len(state[HEAD])
    report = merge(tmp_path / "cut", models, "b a", cuvee.MergeOptions(unsafe_truncate_embeddings=True))
    assert max(ids_in(tmp_path / "cut").values()) == 31999
    assert any("7 tokens of" in line for line in report.warnings)


def test_older_tokenizers_are_cut_too(tmp_path: Path) -> None:
    made = tokenizer(KIND, WINE, 300)
    model = json.loads(made.to_str())["model"]
    models = {}
    for name, more in (("longer", ["one", "two"]), ("shorter", [])):
        listed = {**model["vocab"], **{word: len(model["vocab"]) + i for i, word in enumerate(more)}}
        home = models[name] = save_model(tmp_path / name, made, seed=1, rows=len(listed))
        (home / "tokenizer.json").unlink()
        (home / "vocab.json").write_text(json.dumps(listed))
        (home / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
        (home / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    rows = len(model["vocab"])
    options = cuvee.MergeOptions(threads=1, unsafe_truncate_embeddings=True)
    out = merge(tmp_path / "out", models, "longer shorter", options).out
    assert len(state_in(out)[EMBED]) == rows
    assert max(ids_in(out).values()) < rows
    assert not (out / "vocab.json").exists()
    again = merge(tmp_path / "again", models, "shorter longer", options)  # whose tokens all have rows: nothing to do
    assert (again.out / "vocab.json").exists()
    assert not (again.out / "tokenizer.json").exists()


def test_tokens_that_cannot_be_cut_are_told(models: dict[str, Path], tmp_path: Path) -> None:
    broken = {"broken": tmp_path / "broken", "short": models["short"]}
    shutil.copytree(models["padded"], broken["broken"])
    (broken["broken"] / "tokenizer.json").write_text("{")
    options = cuvee.MergeOptions(threads=1, unsafe_truncate_embeddings=True)
    report = merge(tmp_path / "out", broken, "broken short", options)
    rows = len(state_in(models["short"])[EMBED])
    assert any("is not JSON" in line and f"any tokens beyond {rows}" in line for line in report.warnings)


@pytest.mark.parametrize("source", ["union", "base"])
def test_the_tokens_that_an_adapter_brings_join(source: str, tmp_path: Path) -> None:
    """Its tokenizer.json is longer than the base's, in whose place it stands."""
    made = tokenizer(KIND, WINE, 300, ["<|s|>"])
    base = save_model(tmp_path / "base", made, seed=1)
    count = made.get_vocab_size()
    own = state_in(base)
    held = {key: np.vstack([own[key] + 1, np.full((1, 8), 5, np.float32)]) for key in (EMBED, HEAD)}
    adapter = write_adapter(tmp_path / "adapter", held, modules_to_save=["embed_tokens", "lm_head"])
    made.add_special_tokens([AddedToken("<|brought|>", special=True)])
    save_tokenizer(adapter, made)
    models = {"base": base, "both": f"{base}+{adapter}"}
    settings = {"tokenizer": {"source": source}, "base_model": str(base)}
    out = merge(tmp_path / "out", models, "base both", **settings).out  # type: ignore[arg-type]
    want = own[EMBED] + 2 * (own[EMBED] + 1)
    np.testing.assert_allclose(state_in(out)[EMBED][:count], want, rtol=1e-6)
    assert ids_in(out).get("<|brought|>") == (count if source == "union" else None)
    if source == "union":
        np.testing.assert_allclose(state_in(out)[HEAD][count], np.full(8, 15), rtol=1e-6)


def test_force_without_a_source_means_the_base_or_the_mean(models: dict[str, Path], tmp_path: Path) -> None:
    settings = {"source": "union", "tokens": {"<|s|>": {"force": True}}}
    a, b = (state_in(models[name])[EMBED][ids_in(models[name])["<|s|>"]] for name in "ab")
    for base, row in (("a", a), (None, (a + b) / 2)):
        more = {"base_model": str(models[base])} if base else {}
        out = merge(tmp_path / str(base), models, "a b", tokenizer=settings, **more).out
        np.testing.assert_allclose(state_in(out)[EMBED][ids_in(out)["<|s|>"]], 3 * row, rtol=1e-6)


@pytest.mark.parametrize("field", ["tokenizer", "tokenizer_source"])
@pytest.mark.parametrize(("written", "meant"), [("unoin", "union"), ("Base", "base")])
def test_a_source_misspelt_is_not_looked_for_on_the_hub(
    written: str, meant: str, field: str, models: dict[str, Path], tmp_path: Path
) -> None:
    settings: Any = {"source": written} if field == "tokenizer" else written
    with pytest.raises(VocabularyError, match=f"no model is called '{written}'") as caught:
        merge(tmp_path / "out", models, "a b", **{field: settings})
    assert f"did you mean {meant}?" in str(caught.value)
    assert field in str(caught.value)


def test_equal_sizes_with_other_tokens_are_told(tmp_path: Path) -> None:
    a, b = (tokenizer(KIND, WINE, 300, [token]) for token in ("<|im_start|>", "<|start|>"))
    models = {"a": save_model(tmp_path / "a", a, seed=1), "b": save_model(tmp_path / "b", b, seed=2)}
    report = merge(tmp_path / "out", models, "a b")
    (said,) = [line for line in report.warnings if "vocabularies" in line]
    assert "differ in 1 tokens" in said
    assert "'<|im_start|>'" in said
    assert "'<|start|>'" in said
    same = {"a": models["a"], "b": save_model(tmp_path / "same", a, seed=3)}
    assert "vocabularies" not in "".join(merge(tmp_path / "again", same, "a b").warnings)
    (same["b"] / "tokenizer.json").write_text("{")
    report = merge(tmp_path / "broken", same, "a b")  # a merge by number needs no tokenizer
    assert any(line.startswith("tokenizer.json of ") and "is not JSON" in line for line in report.warnings)


def test_equal_tokenizers_change_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    twin = {"a": models["a"], "b": tmp_path / "twin"}
    save_model(twin["b"], Tokenizer.from_file(str(models["a"] / "tokenizer.json")), seed=9)
    merge(tmp_path / "plain", twin, "a b")
    for source in ("base", "union"):
        merge(tmp_path / source, twin, "a b", tokenizer={"source": source}, base_model=str(models["a"]))
        assert state_in(tmp_path / source).keys() == state_in(tmp_path / "plain").keys()
        for name, values in state_in(tmp_path / "plain").items():
            np.testing.assert_array_equal(state_in(tmp_path / source)[name], values)
        assert (tmp_path / source / "tokenizer.json").read_bytes() == (models["a"] / "tokenizer.json").read_bytes()
    report = cuvee.plan(
        {
            "merge_method": "linear",
            "models": [{"model": str(p), "parameters": {"weight": 1}} for p in twin.values()],
            "tokenizer": {"source": "union"},
        }
    )
    assert {source.kind for op in report.ops for source in op.sources} == {"stored"}


def test_models_without_a_tokenizer_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    bare = save_model(tmp_path / "bare", tokenizer(KIND, WINE, 300), seed=1)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match="bare has no tokenizer"):
        merge(tmp_path / "out", {**models, "bare": bare}, "a bare", tokenizer={"source": "union"})


@pytest.mark.parametrize("template", ["chatml", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_chat_templates(template: str, models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from cuvee.vocab.chat import BUILT_IN

    report = merge(tmp_path / "out", models, "a b", tokenizer={"source": "union"}, chat_template=template)
    text = BUILT_IN.get(template, template)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == text
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == text
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == text
    lacking = [line for line in report.warnings if "<|im_start|>" in line]
    assert len(lacking) == (template == "chatml")


def test_tokens_that_a_template_lacks_are_told_without_a_tokenizer_setting_too(tmp_path: Path) -> None:
    plain, marked = tokenizer(KIND, WINE, 300), tokenizer(KIND, WINE, 300, ["<|im_start|>", "<|im_end|>"])
    for name, made, told in (("plain", plain, True), ("marked", marked, False)):
        own = {n: save_model(tmp_path / name / n, made, seed=1) for n in "ab"}
        report = merge(tmp_path / name / "out", own, "a b", chat_template="chatml")
        assert any("chat template chatml uses <|im_start|>" in line for line in report.warnings) is told


def test_the_commonest_chat_template(models: dict[str, Path], tmp_path: Path) -> None:
    made = tokenizer(KIND, WINE, 300)
    own = {n: save_model(tmp_path / n, made, seed=1, chat_template="{{ 1 }}" if n == "a" else "{{ 2 }}") for n in "abc"}
    merge(tmp_path / "out", own, "a b c", chat_template="auto")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 2 }}"
    with pytest.raises(CuveeError, match="no chat template called"):
        merge(tmp_path / "no", own, "a b c", chat_template="nonsense")


def test_the_output_loads_and_generates(models: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge(
        tmp_path / "out",
        models,
        "a b c",
        tokenizer={"source": "union", "tokens": {"<|n|>": {"source": {"kind": "zero"}}}},
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.get_vocab() == ids_in(tmp_path / "out")
    assert (loaded.eos_token, loaded.convert_tokens_to_ids("<|n|>")) == ("<|s|>", len(loaded) - 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == len(loaded) == model.config.vocab_size
    given = loaded("wine <|b|> grapes <|n|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(model(given).logits).all()


def test_files_of_the_ordinary_vocabulary_go_when_it_changes(models: dict[str, Path], tmp_path: Path) -> None:
    made = tokenizer("SentencePiece BPE", WINE, 60)
    more = tokenizer("SentencePiece BPE", WINE, 60, ["<|new|>"])
    other = tokenizer("SentencePiece BPE", GRAPE, 60)
    own = {n: save_model(tmp_path / n, t, seed=1) for n, t in (("a", made), ("b", more), ("c", other))}
    (own["a"] / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>")
    (own["a"] / "added_tokens.json").write_text("{}")
    merge(tmp_path / "kept", own, "a b", tokenizer={"source": "union"})
    assert (tmp_path / "kept" / "tokenizer.model").exists()
    assert json.loads((tmp_path / "kept" / "added_tokens.json").read_text())["<|new|>"] == made.get_vocab_size()
    report = merge(tmp_path / "gone", own, "a c", tokenizer={"source": "union"})
    assert not (tmp_path / "gone" / "tokenizer.model").exists()
    assert any("tokenizer.model" in line and "not copied" in line for line in report.warnings)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_what_cannot_be_written_in_the_end_is_refused_at_the_start(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """A config that is no JSON, and a token that is half a letter."""
    broken = tmp_path / "broken"
    shutil.copytree(models["b"], broken)
    if name == "tokenizer.json":
        text = (broken / name).read_text().replace('"grapes"', '"grapes\\ud800"').replace('"Ġgrapes"', '"\\ud800"')
        assert "ud800" in text
        source = "union"
    else:
        text, source = "[", str(broken)
    (broken / name).write_text(text)
    with pytest.raises(CuveeError) as caught:
        merge(tmp_path / "out", {**models, "broken": broken}, "a broken", tokenizer={"source": source})
    assert name in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


@pytest.mark.parametrize("how", ["base", "truncated"])
def test_special_ids_of_tokens_that_are_left_out_go(how: str, tmp_path: Path) -> None:
    """An id beyond the rows keeps transformers from loading the model at all."""
    made, short = tokenizer(KIND, WINE, 300, ["<|s|>", "<|pad|>"]), tokenizer(KIND, WINE, 300, ["<|s|>"])
    end, pad = made.token_to_id("<|s|>"), made.token_to_id("<|pad|>")
    facts = {"pad_token_id": pad, "eos_token_id": [end, pad], "text_config": {"pad_token_id": pad, "x_token_id": 3}}
    rows = pad if how == "base" else pad + 1
    models = {
        "a": save_model(tmp_path / "a", made, seed=1, config=facts, rows=rows, eos_token="<|s|>", pad_token="<|pad|>"),
        "b": save_model(tmp_path / "b", short, seed=2),
    }
    (models["a"] / "generation_config.json").write_text(json.dumps({"eos_token_id": [pad, end], "pad_token_id": pad}))
    options = cuvee.MergeOptions(threads=1, unsafe_truncate_embeddings=how == "truncated")
    settings = {"tokenizer": {"source": "base"}, "base_model": str(models["a"])} if how == "base" else {}
    out = merge(tmp_path / "out", models, "a b", options, **settings).out
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (pad, None, [end])
    assert config["text_config"] == {"pad_token_id": None, "x_token_id": 3}
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [end], "pad_token_id": None}
    assert "pad_token" not in json.loads((out / "tokenizer_config.json").read_text())


def test_equal_sizes_without_a_tokenizer_json_are_told_too(tmp_path: Path) -> None:
    """Llama 2 and Mistral of old: 32000 rows each, and a tokenizer.model alone."""
    made = tokenizer(KIND, WINE, 300)
    models = {name: save_model(tmp_path / name, made, seed=1) for name in "ab"}
    for home in models.values():
        (home / "tokenizer.json").unlink()
    for name, words in (("a", ["one", "two", "three"]), ("b", ["one", "drei", "zwei"])):
        # A sentencepiece model: for each piece a message (field 1) whose field 1 is its text.
        pieces = b"".join(bytes([10, len(word) + 2, 10, len(word)]) + word.encode() for word in words)
        (models[name] / "tokenizer.model").write_bytes(pieces)
    (said,) = [line for line in merge(tmp_path / "out", models, "a b").warnings if "vocabularies" in line]
    assert "differ in 2 tokens" in said
    assert f"2 tokens only in {models['b']} ('drei', 'zwei')" in said
    for name in "ab":
        (models[name] / "tokenizer.model").write_bytes(b"no protocol buffer " + name.encode())
    (said,) = [line for line in merge(tmp_path / "odd", models, "a b").warnings if "tokenizer.model" in line]
    assert f"tokenizer.model of {models['a']} and {models['b']} differ" in said
    (models["b"] / "tokenizer.model").write_bytes((models["a"] / "tokenizer.model").read_bytes())
    assert "tokenizer.model" not in "".join(merge(tmp_path / "same", models, "a b").warnings)


def test_a_sentencepiece_model_that_stays_has_its_new_tokens_listed_beside_it(tmp_path: Path) -> None:
    """llama.cpp's converter reads tokenizer.model, and added tokens from tokenizer_config.json."""
    made = tokenizer("SentencePiece BPE", WINE, 60)
    models = {"a": save_model(tmp_path / "a", made, seed=1)}
    (models["a"] / "tokenizer.model").write_bytes(b"\n\x07\n\x05<unk>")
    settings = {"source": "base", "tokens": {"<|new|>": {"source": {"kind": "zero"}}}}
    merge(tmp_path / "out", models, "a", tokenizer=settings)
    assert (tmp_path / "out" / "tokenizer.model").exists()
    listed = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert listed[str(made.get_vocab_size())]["content"] == "<|new|>"
    assert {entry["content"] for entry in listed.values()} == {"<unk>", "<s>", "</s>", "<|new|>"}
