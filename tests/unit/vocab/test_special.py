from __future__ import annotations

from cuvee.vocab.special import moved_ids

OLD = {"<pad>": 0, "<s>": 1, "</s>": 2, "<img>": 3, "<end>": 4}
NEW = {"<s>": 11, "</s>": 12, "<img>": 13}


def test_ids_follow_their_tokens_wherever_they_stand() -> None:
    config = {
        "bos_token_id": 1,
        "eos_token_id": [2, 4],
        "pad_token_id": None,
        "image_token_index": 3,
        "suppress_tokens": [1, 2],
        "bad_words_ids": [[1, 2], [3]],
        "vocab_size": 5,
        "hidden_size": 2,
        "text_config": {"eos_token_id": 2},
    }
    assert moved_ids(config, OLD, NEW, {}) == {
        ("bos_token_id",): 11,
        ("eos_token_id",): [12],
        ("image_token_index",): 13,
        ("suppress_tokens",): [11, 12],
        ("bad_words_ids",): [[11, 12], [13]],
        ("text_config", "eos_token_id"): 12,
    }


def test_a_token_that_is_gone_takes_what_the_new_tokenizers_model_says() -> None:
    donor = {"pad_token_id": 12, "text_config": {"eos_token_id": [12]}}
    config = {"pad_token_id": 0, "eos_token_id": 4, "text_config": {"eos_token_id": [4]}}
    assert moved_ids(config, OLD, NEW, donor) == {
        ("pad_token_id",): 12,
        ("eos_token_id",): None,
        ("text_config", "eos_token_id"): [12],
    }


def test_ids_that_stay_are_left_alone() -> None:
    assert moved_ids({"bos_token_id": 1, "pad_token_id": -1, "is_token_id": True}, OLD, OLD, {}) == {}
