from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cuvee.errors import CheckpointError
from cuvee.publish.side_files import MAX_SIDE_FILE_BYTES, choose_side_files, copy_side_files
from cuvee.tensors.location import Directory, Location

TOKENIZER = {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "tokenizer.model.v3", "tekken.json"),
    *("qwen.tiktoken", "chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja"),
}
OTHERS = {
    *("generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor_config.json", "feature_extractor_config.json", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "1_Pooling/config.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE-MODEL.md", "NOTICE", "Notice.txt", "USE_POLICY.md"),
}
CODE = {"modeling_own.py", "configuration_own.py"}
NEVER = {
    *("config.json", "README.md", "model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json", "optimizer.pt", "training_args.bin"),
    *("scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_config.json", "vectors.pkl", "LICENSE.bin"),
    *("checkpoint-500/tokenizer.json", "onnx/tokenizer.json", "original/tokenizer.model", "sub/code.py"),
    *("additional_chat_templates/notes.txt", "mergekit_config.yml", ".gitattributes", "1_Pooling/other.json"),
}


class Listing(Location):
    """A location that is nothing but names, sizes and the same few bytes in every file."""

    def __init__(self, files: dict[str, int], content: bytes = b"{}") -> None:
        self._files = files
        self._content = content
        self.identity = "hf://org/name@c0ffee"

    def sizes(self) -> dict[str, int]:
        return self._files

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._content[start:stop]

    def fetch(self, name: str) -> Path:
        raise AssertionError(f"{name} was fetched while choosing")


def listing(*names: str, **sizes: int) -> Listing:
    return Listing(dict.fromkeys(names, 2) | sizes)


EVERYTHING = listing(*TOKENIZER, *OTHERS, *CODE, *NEVER)


def directory(path: Path, files: dict[str, bytes]) -> Directory:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return Directory(path)


def test_what_belongs_to_a_model_goes_along_and_nothing_else() -> None:
    chosen = choose_side_files(EVERYTHING, trust_remote_code=True)
    assert set(chosen.sources) == TOKENIZER | OTHERS | CODE
    assert chosen.warnings == ()


def test_without_trust_code_is_named_but_not_copied() -> None:
    chosen = choose_side_files(EVERYTHING)
    assert set(chosen.sources) == TOKENIZER | OTHERS
    (warning,) = chosen.warnings
    assert "configuration_own.py, modeling_own.py" in warning
    assert "--trust-remote-code" in warning


def test_the_tokenizer_can_stay_behind() -> None:
    assert set(choose_side_files(EVERYTHING, copy_tokenizer=False).sources) == OTHERS


def test_the_tokenizer_can_come_from_elsewhere() -> None:
    base = listing("tokenizer.json", "vocab.txt", "generation_config.json", "modeling_a.py", "tokenization_a.py")
    other = listing("tokenizer.json", "generation_config.json", "modeling_b.py", "tokenization_b.py", "LICENSE")
    chosen = choose_side_files(base, tokenizer_from=other, trust_remote_code=True)
    assert chosen.sources == {
        "generation_config.json": base,
        "modeling_a.py": base,
        "tokenization_a.py": base,
        "tokenization_b.py": other,
        "tokenizer.json": other,
    }


def test_a_tokenizer_source_without_tokenizer_is_told() -> None:
    chosen = choose_side_files(listing("tokenizer.json"), tokenizer_from=listing("config.json"))
    assert chosen.sources == {}
    assert "hf://org/name@c0ffee holds no tokenizer files" in chosen.warnings[0]


def test_numbered_folders_mean_something_only_to_sentence_transformers() -> None:
    files = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    assert choose_side_files(listing(*files)).sources == {}
    chosen = choose_side_files(listing(*files, "modules.json"))
    assert set(chosen.sources) == {"1_Pooling/config.json", "2_Dense/config.json", "modules.json"}
    assert chosen.warnings == ()  # a module's weights are merged, not copied


@pytest.mark.parametrize(
    "name",
    [
        "../tokenizer.json",
        "/etc/tokenizer.json",
        "..\\tokenizer.json",
        "C:\\x\\LICENSE",
        "C:vocab.txt",
        "additional_chat_templates/../../vocab.txt",
        "a/../generation_config.json",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="leads out of the checkpoint") as caught:
        choose_side_files(listing("tokenizer.json", name))
    assert caught.value.file == name


def test_odd_names_of_files_that_do_not_go_along_are_no_matter() -> None:
    assert set(choose_side_files(listing("runs\\events.log", "../x.bin", "vocab.txt")).sources) == {"vocab.txt"}


def test_a_file_too_large_to_be_a_side_file_is_refused_by_name() -> None:
    assert choose_side_files(Listing({"tokenizer.json": MAX_SIDE_FILE_BYTES})).sources
    huge = Listing({"tokenizer.json": MAX_SIDE_FILE_BYTES + (1 << 20), "LICENSE": 1})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is too large") as caught:
        choose_side_files(huge)
    assert (caught.value.expected, caught.value.found) == ("at most 512 MiB", "513 MiB")
    assert set(choose_side_files(huge, copy_tokenizer=False).sources) == {"LICENSE"}


@pytest.mark.parametrize("content", [pickle.dumps([1], protocol=2), pickle.dumps([1], protocol=4), b"PK\x03\x04rest"])
def test_a_pickle_that_calls_itself_a_model_stays_behind(content: bytes) -> None:
    chosen = choose_side_files(Listing({"tokenizer.model": 9, "vocab.txt": 9}, content))
    assert set(chosen.sources) == {"vocab.txt"}
    assert "tokenizer.model" in chosen.warnings[0]
    assert "pickle" in chosen.warnings[0]


def test_copies_hold_the_same_bytes(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": b'{"a": 1}',
        "additional_chat_templates/tools.jinja": b"{{ tools }}",
        "vocab.txt": b"",
        "spiece.model": b"\n\x0e\n\x05<unk>" * 300_000,
    }
    base = directory(tmp_path / "base", files | {"model.safetensors": b"weights"})
    out = tmp_path / "out"
    out.mkdir()
    copied = copy_side_files(choose_side_files(base), out)
    assert copied == tuple(sorted(files))
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == files


def test_links_are_copied_as_files(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "f00d").write_bytes(b"tokens")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.txt").symlink_to(tmp_path / "blobs" / "f00d")
    copy_side_files(choose_side_files(Directory(tmp_path / "base")), tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == b"tokens"


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    base = directory(tmp_path / "base", {"vocab.txt": b"x"})
    chosen = choose_side_files(base)
    (tmp_path / "base" / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"cannot open .*vocab\.txt"):
        copy_side_files(chosen, tmp_path / "out")
