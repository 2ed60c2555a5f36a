"""Output tokenizers of every kind: ids that stay, tokens found, flags kept, kinds that do not meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Directory
from cuvee.vocab.output import OutputTokenizer, unchanged, union, with_tokens
from cuvee.vocab.spelling import ids_as_spelt_by
from cuvee.vocab.tokenizer import Tokenizer, read_tokenizer
from support.vocabularies import GRAPE, KINDS, WINE, save_tokenizer, tokenizer

ALL = 1 << 30


def read(folder: Path, made: Library, **settings: Any) -> Tokenizer:
    found = read_tokenizer(Directory(save_tokenizer(folder, made, **settings)), folder.name)
    assert found is not None
    return found


def pair(folder: Path, kind: str) -> tuple[Tokenizer, Tokenizer]:
    first = read(folder / "a", tokenizer(kind, WINE, 300, ["<|a|>", "<|both|>"]))
    return first, read(folder / "b", tokenizer(kind, GRAPE, 320, ["<|both|>", "<|b|>"]))


def loaded(output: OutputTokenizer) -> Library:
    return Library.from_str(output.text)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_agrees_with_the_library(kind: str, tmp_path: Path) -> None:
    made = tokenizer(kind, WINE, 300, ["<|a|>", "<|both|>"])
    found = read(tmp_path / "a", made)
    assert found.kind == kind
    assert dict(found.ids) == made.get_vocab(with_added_tokens=True)
    assert found.size == max(found.ids.values()) + 1
    assert found.added["<|a|>"] == {
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_holds_all_tokens_and_keeps_the_bases_ids(kind: str, tmp_path: Path) -> None:
    first, second = pair(tmp_path, kind)
    output = union(unchanged(first, ALL), [(second, ALL)])
    ids = loaded(output).get_vocab(with_added_tokens=True)
    assert ids.keys() == first.ids.keys() | second.ids.keys()
    assert ids == dict(output.ids)
    assert {token: ids[token] for token in first.ids} == dict(first.ids)
    new = [token for token in output.ids if token not in first.ids]
    assert sorted(ids[token] for token in new) == list(range(first.size, first.size + len(new)))
    ordinary = [token for token in new if token != "<|b|>"]
    assert ordinary == sorted(ordinary, key=second.ids.__getitem__)
    assert ids["<|b|>"] == max(ids.values())


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece BPE", "Unigram"])
@pytest.mark.parametrize("text", [WINE, "the casks <|a|> sing", "wine<|both|>rain"])
def test_special_tokens_of_others_leave_text_as_it_was(kind: str, text: str, tmp_path: Path) -> None:
    made = tokenizer(kind, WINE, 300, ["<|a|>", "<|both|>"])
    first = read(tmp_path / "a", made)
    more = tokenizer(kind, WINE, 300, ["<|both|>", "<|b|>", "<|c|>"])
    output = union(unchanged(first, ALL), [(read(tmp_path / "b", more), ALL)])
    assert output.appended == 0
    assert not output.model_changed
    assert loaded(output).encode(text).ids == made.encode(text).ids
    assert "<|b|>" in loaded(output).encode("wine <|b|> rain").tokens


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives_a_union(kind: str, tmp_path: Path) -> None:
    first, second = pair(tmp_path, kind)
    both = loaded(union(unchanged(first, ALL), [(second, ALL)]))
    for text, own in ((WINE, first), (GRAPE, second)):
        plain = Library.from_file(str(own.location.fetch("tokenizer.json")))
        assert both.decode(both.encode(text).ids) == plain.decode(plain.encode(text).ids)
        known = {token for token in both.encode(text).tokens if token in own.ids}
        assert known, "nothing of the model's own is ever used"


def test_merges_of_others_make_their_tokens_reachable_after_the_own_ones(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "byte-level BPE")
    output = union(unchanged(first, ALL), [(second, ALL)])
    merges = [tuple(merge) for merge in json.loads(output.text)["model"]["merges"]]
    own = [tuple(merge) for merge in first.document["model"]["merges"]]
    assert merges[: len(own)] == own
    tokens = loaded(output).encode("Trauben grapes").tokens
    assert any(token in second.ids and token not in first.ids for token in tokens)


def test_a_tokenizer_extended_from_the_base_is_the_union(tmp_path: Path) -> None:
    """Pieces and merges added to a base, as language extensions of Llama are made: the union is that tokenizer."""
    made = tokenizer("SentencePiece BPE", WINE, 80)
    model = json.loads(made.to_str())
    vocabulary, merges = model["model"]["vocab"], model["model"]["merges"]
    for left, right in (("▁", "x"), ("▁x", "w"), ("w", "y"), ("▁xw", "y")):
        for piece in (left, right, left + right):
            vocabulary.setdefault(piece, len(vocabulary))
        merges.append([left, right])
    extended = Library.from_str(json.dumps(model))
    base, other = read(tmp_path / "a", made), read(tmp_path / "b", extended)
    output = union(unchanged(base, ALL), [(other, ALL)])
    assert dict(output.ids) == dict(other.ids)
    for text in (WINE, "xwy the xw wine", "yyx"):
        assert loaded(output).encode(text).ids == extended.encode(text).ids


def test_unigram_pieces_of_others_serve_only_where_the_own_ones_cannot(tmp_path: Path) -> None:
    first = read(tmp_path / "a", tokenizer("Unigram", WINE, 300))
    document = json.loads(tokenizer("Unigram", GRAPE, 320).to_str())
    document["model"]["vocab"].append(
        ["▁winesleepsintherain", -0.5]
    )  # one likely piece for what the own ones can spell
    second = read(tmp_path / "b", Library.from_str(json.dumps(document)))
    both = loaded(union(unchanged(first, ALL), [(second, ALL)]))
    plain = Library.from_file(str(first.location.fetch("tokenizer.json")))
    for text in (WINE, "the old casks", "winesleepsintherain"):
        assert both.encode(text).ids == plain.encode(text).ids
    assert plain.token_to_id("<unk>") in plain.encode("süße").ids
    assert plain.token_to_id("<unk>") not in both.encode("süße").ids


def test_kinds_that_differ_have_no_union(tmp_path: Path) -> None:
    made = [read(tmp_path / kind, tokenizer(kind, WINE, 300)) for kind in KINDS]
    for first in made:
        for second in made:
            if first is second:
                continue
            with pytest.raises(VocabularyError, match="have no union") as caught:
                union(unchanged(first, ALL), [(second, ALL)])
            assert first.kind in str(caught.value.expected)
            assert second.kind in str(caught.value.found)
            assert "source: base" in str(caught.value.fix)


def test_wordpieces_with_other_prefixes_have_no_union(tmp_path: Path) -> None:
    made = tokenizer("WordPiece", WINE, 60)
    document = json.loads(made.to_str())
    document["model"]["continuing_subword_prefix"] = "@@"
    document["model"]["vocab"]["new"] = len(document["model"]["vocab"])
    other = read(tmp_path / "b", Library.from_str(json.dumps(document)))
    with pytest.raises(VocabularyError, match="have no union"):
        union(unchanged(read(tmp_path / "a", made), ALL), [(other, ALL)])


def test_tokens_beyond_the_embedding_are_not_there(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "byte-level BPE")
    short = unchanged(first, first.size - 1)
    assert short.dropped == {"<|both|>"}
    assert "<|both|>" not in loaded(short).get_vocab()
    again = union(short, [(second, ALL)])
    assert not again.dropped
    assert loaded(again).token_to_id("<|both|>") == again.ids["<|both|>"] >= first.size - 1
    shorter = unchanged(first, len(first.own) - 3)
    assert shorter.model_changed
    left = loaded(shorter)
    assert left.get_vocab_size() == len(first.own) - 3
    assert left.decode(left.encode(WINE).ids) == WINE


def test_flags_are_kept(tmp_path: Path) -> None:
    made = tokenizer("byte-level BPE", WINE, 300)
    made.add_special_tokens([AddedToken("<|own|>", lstrip=True, special=True, normalized=False)])
    more = tokenizer("byte-level BPE", WINE, 300)
    more.add_tokens([AddedToken("<|own|>", rstrip=True, normalized=False), AddedToken("<tool>", single_word=True)])
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", more)
    output = with_tokens(union(unchanged(first, ALL), [(second, ALL)]), ["<|own|>", "<new>", "<tool>"], second.added)
    flags = {entry["content"]: entry for entry in json.loads(output.text)["added_tokens"]}
    assert (flags["<|own|>"]["lstrip"], flags["<|own|>"]["rstrip"], flags["<|own|>"]["special"]) == (True, False, True)
    assert flags["<tool>"]["single_word"]
    assert not flags["<tool>"]["special"]
    assert (flags["<new>"]["special"], flags["<new>"]["normalized"]) == (True, False)
    again = with_tokens(unchanged(first, ALL), ["<|own|>"], second.added)
    assert not again.changed


def test_a_special_token_that_the_base_knows_as_text_becomes_special(tmp_path: Path) -> None:
    made, more = (tokenizer("SentencePiece BPE", WINE, 80) for _ in range(2))
    more.add_special_tokens([AddedToken("▁wine", special=True, normalized=False)])
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", more)
    assert "▁wine" in first.own
    output = union(unchanged(first, ALL), [(second, ALL)])
    assert dict(output.ids) == dict(first.ids)
    assert json.loads(output.text)["added_tokens"][-1]["content"] == "▁wine"


@pytest.mark.parametrize(
    ("mine", "theirs"), [("byte-level BPE", "SentencePiece BPE"), ("SentencePiece BPE", "Unigram")]
)
def test_tokens_of_other_kinds_match_by_the_bytes_they_stand_for(mine: str, theirs: str, tmp_path: Path) -> None:
    first = read(tmp_path / "a", tokenizer(mine, GRAPE, 340, ["<|s|>"]))
    second = read(tmp_path / "b", tokenizer(theirs, GRAPE, 120, ["<|s|>"]))
    ids = ids_as_spelt_by(first, second)
    assert ids["<|s|>"] == second.ids["<|s|>"]
    assert ids["e"] == second.ids["e"]
    if mine == "byte-level BPE":
        assert ids["Ġthe"] == second.ids["▁the"]
        assert ids["Ã¼"] == second.ids["ü"]
        assert ids["Ā"] == second.ids["<0x00>"]
    else:
        shared = [token for token in first.own if token in second.own]
        assert len(shared) > 20
        assert all(ids[token] == second.ids[token] for token in shared)
    same = read(tmp_path / "c", tokenizer(mine, WINE, 340))
    assert ids_as_spelt_by(first, same) == same.ids


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    for text, says in (("{}", "is not a tokenizer"), ("[", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(VocabularyError, match=says):
            read_tokenizer(Directory(tmp_path), "m")
    (tmp_path / "tokenizer.json").unlink()
    assert read_tokenizer(Directory(tmp_path), "m") is None


def test_tokens_that_only_the_settings_list_count(tmp_path: Path) -> None:
    made = tokenizer("byte-level BPE", WINE, 300)
    size = made.get_vocab_size()
    save_tokenizer(tmp_path, made, added_tokens_decoder={str(size): {"content": "<|late|>", "special": True}})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|late|>": size, "<older>": size + 1}))
    found = read_tokenizer(Directory(tmp_path), "m")
    assert found is not None
    assert (found.ids["<|late|>"], found.ids["<older>"]) == (size, size + 1)
    assert found.added["<|late|>"]["special"]
    output = with_tokens(unchanged(found, ALL), ["<|new|>"], {})
    assert loaded(output).token_to_id("<|new|>") == size + 2


def test_a_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wine", "cask", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    found = read_tokenizer(Directory(tmp_path), "bert")
    assert found is not None
    assert (found.kind, found.is_slow) == ("WordPiece", True)
    assert dict(found.ids) == {word: number for number, word in enumerate(words)}


def remade(made: Library, **changes: Any) -> Library:
    """A tokenizer with other settings of its model (by name), or other steps, and a token more."""
    document = json.loads(made.to_str())
    for name, value in changes.items():
        (document if name in document else document["model"])[name] = value
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary.append(["one more", -3.0])
    else:
        vocabulary["one more"] = len(vocabulary)
    return Library.from_str(json.dumps(document))


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("byte-level BPE", {"end_of_word_suffix": "</w>"}, "suffix '</w>'"),
        ("Unigram", {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}, "spaces written as nothing"),
        ("Unigram", {"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "spaces written as '_'"),
    ],
)
def test_one_kind_with_another_spelling_has_no_union(kind: str, changes: Any, says: str, tmp_path: Path) -> None:
    """CLIP's words end in `</w>`, and `the` is the middle of one; without a sign for spaces it may be either."""
    made = tokenizer(kind, WINE, 330)
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", remade(made, **changes))
    assert first.kind == second.kind
    for start, other in ((first, second), (second, first)):
        with pytest.raises(VocabularyError, match="have no union") as caught:
            union(unchanged(start, ALL), [(other, ALL)])
        assert says in str(caught.value.expected) + str(caught.value.found)
    same = read(tmp_path / "c", remade(made))
    assert union(unchanged(first, ALL), [(same, ALL)]).appended == 1


def test_plain_bpe_that_writes_spaces_joins_with_sentencepiece(tmp_path: Path) -> None:
    made = tokenizer("SentencePiece BPE", WINE, 60)
    document = json.loads(tokenizer("SentencePiece BPE", GRAPE, 60).to_str())
    document["model"] |= {"byte_fallback": False, "fuse_unk": False}
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", Library.from_str(json.dumps(document)))
    assert (first.kind, second.kind) == ("SentencePiece BPE", "BPE")
    both = loaded(union(unchanged(first, ALL), [(second, ALL)]))
    assert both.decode(both.encode(GRAPE).ids) == GRAPE


def test_added_tokens_that_the_model_makes_too_are_joined_as_ordinary_ones(tmp_path: Path) -> None:
    """Gemma lists line breaks as added tokens; Llama's tokenizer would put a space after each."""
    made = tokenizer("SentencePiece BPE", WINE, 60)
    document = json.loads(tokenizer("SentencePiece BPE", GRAPE, 60).to_str())
    model = document["model"]
    for token in ("\n", "\n\n", "<b>", "\t"):
        model["vocab"][token] = len(model["vocab"])
    model["merges"].append(["\n", "\n"])
    other = Library.from_str(json.dumps(document))
    other.add_tokens([AddedToken(token, normalized=False) for token in ("\n", "\n\n", "<b>")])
    other.add_tokens([AddedToken("\t", normalized=False, lstrip=True)])
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", other)
    output = union(unchanged(first, ALL), [(second, ALL)])
    assert output.added.keys() - first.added.keys() == {"<b>", "\t"}
    library = loaded(output)
    assert library.get_vocab(with_added_tokens=True) == dict(output.ids)
    text = "the wine\n    of the\n\nriver"
    tokens = library.encode(text).tokens
    assert {"\n", "\n\n"} < set(tokens)
    assert library.decode(library.encode(text).ids) == text
    third = read(tmp_path / "c", made)
    special = tokenizer("SentencePiece BPE", WINE, 60)
    special.add_special_tokens([AddedToken("\n\n", special=True, normalized=False)])
    again = union(unchanged(third, ALL), [(second, ALL), (read(tmp_path / "d", special), ALL)])
    assert again.added.keys() - first.added.keys() == {"<b>", "\t", "\n\n"}, "one other model has it as added only"


def holed(made: Library) -> Library:
    """A tokenizer whose ids skip seven numbers in the middle."""
    document = json.loads(made.to_str())
    vocabulary = document["model"]["vocab"]
    half = len(vocabulary) // 2
    document["model"]["vocab"] = {token: n + 7 * (n >= half) for token, n in vocabulary.items()}
    return Library.from_str(json.dumps(document))


@pytest.mark.parametrize("kind", ["byte-level BPE", "SentencePiece BPE", "WordPiece", "WordLevel"])
def test_gaps_in_ids_stay(kind: str, tmp_path: Path) -> None:
    made, more = holed(tokenizer(kind, WINE, 300)), tokenizer(kind, GRAPE, 320, ["<|b|>"])
    first, second = read(tmp_path / "a", made), read(tmp_path / "b", more)
    for start, other in ((first, second), (second, first)):
        output = union(unchanged(start, ALL), [(other, ALL)])
        ids = loaded(output).get_vocab(with_added_tokens=True)
        assert ids == dict(output.ids)
        assert {token: ids[token] for token in start.ids} == dict(start.ids)
        assert len(set(ids.values())) == len(ids)


def test_unigram_pieces_cannot_follow_after_a_gap(tmp_path: Path) -> None:
    made = tokenizer("Unigram", WINE, 100)
    home = save_tokenizer(tmp_path / "a", made, added_tokens_decoder={"120": {"content": "<late>", "special": True}})
    first = read_tokenizer(Directory(home), "a")
    assert first is not None
    output = union(unchanged(first, ALL), [(read(tmp_path / "b", tokenizer("Unigram", GRAPE, 120)), ALL)])
    with pytest.raises(VocabularyError, match="its ids have gaps"):
        _ = output.document
