from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.views.tied import without_tied_copies
from support.checkpoints import Array, write_checkpoint

EMBEDDING = np.arange(300_000, dtype=np.float32).reshape(100_000, 3)
BODY = {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": np.ones(3, np.float32)}
TIED = {"tie_word_embeddings": True}


def seen(folder: Path, tensors: dict[str, Array], config: dict[str, Any]) -> set[str]:
    write_checkpoint(folder, tensors, config)
    return set(without_tied_copies(open_checkpoint(Directory(folder), "m")).tensors)


def test_a_head_that_equals_the_embedding_is_left_out(tmp_path: Path) -> None:
    assert seen(tmp_path, BODY | {"lm_head.weight": EMBEDDING}, TIED) == set(BODY)


@pytest.mark.parametrize("element", [0, 20_000, 150_001, 299_999])
def test_a_head_that_differs_anywhere_stays(element: int, tmp_path: Path) -> None:
    head = EMBEDDING.copy()
    head.flat[element] += 1
    assert seen(tmp_path, BODY | {"lm_head.weight": head}, TIED) == {*BODY, "lm_head.weight"}


def test_what_the_config_does_not_tie_stays(tmp_path: Path) -> None:
    config = {"tie_word_embeddings": False}
    assert seen(tmp_path, BODY | {"lm_head.weight": EMBEDDING}, config) == {*BODY, "lm_head.weight"}


def test_other_tensors_of_the_same_values_stay(tmp_path: Path) -> None:
    assert seen(tmp_path, BODY | {"model.other.weight": EMBEDDING}, TIED) == {*BODY, "model.other.weight"}


def test_what_encoder_and_decoder_share_is_one_tensor(tmp_path: Path) -> None:
    shared = {"shared.weight": EMBEDDING, "final_logits_bias": np.ones((1, 100_000), np.float32)}
    copies = {f"{part}.embed_tokens.weight": EMBEDDING for part in ("encoder", "decoder")}
    assert seen(tmp_path, shared | copies, {}) == set(shared)


def test_pickles_store_shared_tensors_under_each_name(tmp_path: Path) -> None:
    import torch

    embedding = torch.ones(8, 3)
    tmp_path.joinpath("config.json").write_text("{}")
    names = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    torch.save(dict.fromkeys(names, embedding), tmp_path / "pytorch_model.bin")
    opened: Checkpoint = open_checkpoint(Directory(tmp_path), "m", tmp_path / "converted")
    assert set(opened.tensors) == set(names)
    assert set(without_tied_copies(opened).tensors) == {names[0]}
