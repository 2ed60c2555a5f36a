"""Tiny tokenizers of every kind, trained on a few words, and Llamas whose every row is a number of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from support.tiny_models import State, llama_state, save_llama

WINE = "the old wine of the river sleeps in a small cask while the cooper sings of wine and casks and rain"
GRAPE = "the young grapes on the hill ripen in the sun and the pickers sing of grapes and wine ünd süße Trauben"
SPECIAL = {"special": True, "normalized": False}
KINDS = ("byte-level BPE", "SentencePiece BPE", "Unigram", "WordPiece", "WordLevel")


def tokenizer(kind: str, text: str, size: int, specials: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of one kind that knows `text`, with special tokens after its ordinary ones."""
    made = _MAKERS[kind](text, size)
    made.add_special_tokens([AddedToken(token, **SPECIAL) for token in specials])
    return made


def _byte_level(text: str, size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text] * 9, trainer)
    return made


def _sentencepiece(text: str, size: int) -> Tokenizer:
    """As Llama 2's is written: `<unk>`, `<s>`, `</s>` and the bytes first, and all of them in the model."""
    scratch = Tokenizer(models.BPE(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    scratch.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    trained = json.loads(scratch.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = dict.fromkeys([*first, *sorted(trained["vocab"], key=trained["vocab"].__getitem__)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(token, **SPECIAL) for token in first[:3]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _unigram(text: str, size: int) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    made.train_from_iterator([text] * 9, trainer)
    return made


def _wordpiece(text: str, size: int) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    made.train_from_iterator([text] * 9, trainer)
    return made


def _wordlevel(text: str, size: int) -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([text] * 9, trainer)
    return made


_MAKERS = dict(zip(KINDS, (_byte_level, _sentencepiece, _unigram, _wordpiece, _wordlevel), strict=True))


def save_tokenizer(folder: Path, made: Tokenizer, **settings: Any) -> Path:
    """A folder with a tokenizer alone."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}, indent=2)
    )
    return folder


def save_model(
    folder: Path,
    made: Tokenizer,
    *,
    seed: int,
    rows: int | None = None,
    tied: bool = False,
    hidden: int = 8,
    config: Mapping[str, Any] | None = None,
    dtype: Any = np.float32,
    **settings: Any,
) -> Path:
    """A Llama of one layer around a tokenizer."""
    count = made.get_vocab_size() if rows is None else rows
    state = llama_state(layers=1, hidden=hidden, vocabulary=count, seed=seed)
    if tied:
        del state["lm_head.weight"]
    facts = {"tie_word_embeddings": tied, **(config or {})}
    save_llama(folder, {name: values.astype(dtype) for name, values in state.items()}, layers=1, config=facts)
    (folder / "chat_template.jinja").unlink()
    save_tokenizer(folder, made, **settings)
    return folder


def ids_in(folder: Path) -> dict[str, int]:
    """A saved tokenizer's ids, as the library reads them."""
    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return found


def state_in(folder: Path) -> State:
    """A model's tensors."""
    return dict(load_file(folder / "model.safetensors"))
