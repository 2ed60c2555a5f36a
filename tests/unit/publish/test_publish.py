from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from cuvee.errors import CheckpointError, OutputError
from cuvee.publish.config import merged_config_text
from cuvee.publish.publish import publish
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.location import Directory

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
CONFIG = LlamaConfig(
    vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)


def model_directory(path: Path, words: tuple[str, ...] = ("<unk>", "red", "white", "blend")) -> Checkpoint:
    """A checkpoint with a word-level tokenizer and a chat template, but without weights."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    CONFIG.save_pretrained(path)
    (path / "README.md").write_text("the base's own words")
    location = Directory(path)
    text = (path / "config.json").read_text()
    return Checkpoint(path.name, location, {}, location.sizes(), {}, {}, text)


def test_the_output_loads_in_transformers(tmp_path: Path) -> None:
    base = model_directory(tmp_path / "base")
    assert base.config_text is not None
    config = merged_config_text(base.config_text, dtype="bfloat16", edits={("num_hidden_layers",): 5}, vocab_size=None)
    out = tmp_path / "out"
    out.mkdir()
    done = publish(out, base=base, config_text=config, card="# card\n", recipe_text="a: é\n")
    assert set(done.files) == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert done.files[-1] == "config.json"
    assert (out / "README.md").read_text() == "# card\n"
    assert (out / "mergekit_config.yml").read_bytes() == "a: é\n".encode()
    loaded = AutoConfig.from_pretrained(out)
    assert (loaded.num_hidden_layers, loaded.hidden_size, str(loaded.dtype)) == (5, 8, "torch.bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("white red rosé")["input_ids"] == [2, 1, 0]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "red"}], tokenize=False)
    assert chat == "<user>red"


def test_the_tokenizer_comes_from_another_checkpoint(tmp_path: Path) -> None:
    base = model_directory(tmp_path / "base")
    other = model_directory(tmp_path / "other", ("<unk>", "blend", "white", "red"))
    out = tmp_path / "out"
    publish(out, base=base, tokenizer_from=other.location, config_text=base.config_text, card=None, recipe_text=None)
    assert AutoTokenizer.from_pretrained(out)("red white")["input_ids"] == [3, 2]


def test_what_is_not_wanted_is_not_written(tmp_path: Path) -> None:
    base = model_directory(tmp_path / "base")
    (tmp_path / "base" / "modeling_own.py").write_text("pass")
    out = tmp_path / "out"
    out.mkdir()
    done = publish(out, base=base, config_text=None, card=None, recipe_text=None, copy_tokenizer=False)
    assert done.files == ()
    assert list(out.iterdir()) == []
    assert "modeling_own.py" in done.warnings[0]
    publish(out, base=base, config_text=None, card=None, recipe_text="r", copy_tokenizer=False, trust_remote_code=True)
    assert {path.name for path in out.iterdir()} == {"mergekit_config.yml", "modeling_own.py"}


def test_a_side_file_that_vanishes_leaves_no_config(tmp_path: Path) -> None:
    class Forgetful(Directory):
        def fetch(self, name: str) -> Path:
            return super().fetch(name).with_name("gone")

    base = model_directory(tmp_path / "base")
    broken = Checkpoint("base", Forgetful(tmp_path / "base"), {}, base.files, {}, {}, base.config_text)
    with pytest.raises(CheckpointError, match="cannot open"):
        publish(tmp_path / "out", base=broken, config_text=base.config_text, card=None, recipe_text=None)
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    base = model_directory(tmp_path / "base")
    (tmp_path / "out").write_text("a file, not a directory")
    with pytest.raises(OutputError, match="cannot write"):
        publish(tmp_path / "out", base=base, config_text="{}", card=None, recipe_text=None)
