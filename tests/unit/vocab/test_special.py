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


def test_whispers_pairs_and_tables() -> None:
    """Pairs are a place and an id: the place is no id, whatever token that number is."""
    config = {
        "forced_decoder_ids": [[1, 3], [2, 4], [3, None]],
        "lang_to_id": {"<|de|>": 1, "<|en|>": 2},
        "task_to_id": {"transcribe": 3},
        "alignment_heads": [[1, 2]],
        "prev_sot_token_id": 2,
    }
    assert moved_ids(config, OLD, NEW, {}) == {
        ("forced_decoder_ids",): [[1, 13], [3, None]],
        ("lang_to_id", "<|de|>"): 11,
        ("lang_to_id", "<|en|>"): 12,
        ("task_to_id", "transcribe"): 13,
        ("prev_sot_token_id",): 12,
    }


def test_ids_of_no_token_stay_where_their_rows_stay() -> None:
    config = {"pad_token_id": 7, "eos_token_id": [2, 4, 8], "image_token_id": 9}
    left = {token: number for token, number in OLD.items() if token != "<end>"}
    found = moved_ids(config, OLD, left, {}, kept=9)
    assert found == {("eos_token_id",): [2, 8], ("image_token_id",): None}
    assert moved_ids(config, OLD, left, {})[("pad_token_id",)] is None
