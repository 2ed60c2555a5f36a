from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cuvee.errors import CheckpointError, SourceError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from support.checkpoints import Array, write_checkpoint, write_index, write_tensors

A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.ones(4, np.float16), "c": np.array([True, False])}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(Directory(folder), "my-model")


def refused(folder: Path, words: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=words) as caught:
        opened(folder)
    assert caught.value.checkpoint == "my-model"
    assert "my-model" in str(caught.value)
    return caught.value


def assert_holds(checkpoint: Checkpoint, tensors: Mapping[str, Array]) -> None:
    assert list(checkpoint.tensors) == list(tensors)
    for name, stored in checkpoint.tensors.items():
        raw = Path(stored.file).read_bytes()[stored.offset :][: tensors[name].nbytes]
        assert raw == tensors[name].tobytes()
        assert stored.shape == tensors[name].shape


def test_one_file(tmp_path: Path) -> None:
    checkpoint = opened(write_checkpoint(tmp_path, A | B, {"model_type": "llama", "n": 1}))
    assert_holds(checkpoint, dict(sorted((A | B).items(), key=lambda item: -item[1].itemsize)))
    assert checkpoint.config == {"model_type": "llama", "n": 1}
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.identity == str(tmp_path.resolve())
    assert checkpoint.files.keys() == {"model.safetensors", "config.json"}
    assert checkpoint.files["model.safetensors"] == (tmp_path / "model.safetensors").stat().st_size
    assert list(checkpoint.weight_files.values()) == ["model.safetensors"]


def test_shards(tmp_path: Path) -> None:
    checkpoint = opened(write_checkpoint(tmp_path, [A, B]))
    assert_holds(checkpoint, A | B)
    assert sorted(checkpoint.weight_files.values()) == [FIRST, SECOND]
    assert checkpoint.config == {}


def test_shards_without_an_index_and_under_other_names(tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights-b.safetensors", B)
    write_tensors(tmp_path / "weights-a.safetensors", A)
    assert opened(tmp_path).tensors.keys() == (A | B).keys()


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.safetensors", "sub/extra.safetensors", "consolidated.safetensors"]
)
def test_files_that_are_not_the_models_weights_are_left_alone(name: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights.safetensors", A)
    write_tensors(tmp_path / name, {"z": np.ones(3)})
    assert opened(tmp_path).tensors.keys() == A.keys()
    (tmp_path / "weights.safetensors").unlink()
    assert "holds no weights" in str(refused(tmp_path, "holds no weights"))


def test_the_one_file_stands_before_others_beside_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, A)
    write_tensors(tmp_path / "other.safetensors", B)
    assert opened(tmp_path).tensors.keys() == A.keys()


def test_an_index_stands_before_a_file_it_does_not_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [A, B])
    write_tensors(tmp_path / "model.safetensors", {"old": np.ones(3)})
    assert opened(tmp_path).tensors.keys() == (A | B).keys()


def test_an_empty_directory(tmp_path: Path) -> None:
    error = refused(tmp_path, "holds no weights")
    assert error.found == "an empty directory"
    (tmp_path / "readme.txt").write_text("x")
    assert refused(tmp_path, "holds no weights").found == "readme.txt"


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no checkpoint") as caught:
        Directory(tmp_path / "absent")
    assert caught.value.found == "nothing"
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError) as caught:
        Directory(tmp_path / "file")
    assert caught.value.found == "a file"


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [A, B])
    (tmp_path / SECOND).unlink()
    error = refused(tmp_path, f"1 of the 2 shards .* missing: {SECOND}")
    assert error.file == SECOND


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "/etc/passwd", "a/../../b", "", "C:\\x.safetensors", "c:x", "nul\0"]
)
def test_an_index_that_leads_outside_is_refused(path: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "outside.safetensors", A)
    folder = write_checkpoint(tmp_path / "inside", [A])
    write_index(folder, {"a": path})
    refused(folder, "outside the checkpoint")


LIES: dict[str, tuple[dict[str, str], str]] = {
    "a tensor too few": ({"a": FIRST, "b": SECOND}, "'c'"),
    "a tensor too many": ({"a": FIRST, "b": SECOND, "c": SECOND, "d": FIRST}, "'d'"),
    "the wrong file": ({"a": SECOND, "b": FIRST, "c": FIRST}, "truth about tensor"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    claimed, words = LIES[lie]
    write_checkpoint(tmp_path, [A, B])
    write_index(tmp_path, claimed)
    error = refused(tmp_path, "does not tell the truth")
    assert words in str(error)
    assert error.tensor in {"a", "b", "c", "d"}


def test_an_index_that_leaves_out_a_shard_hides_its_tensors_from_nobody(tmp_path: Path) -> None:
    """What the index names is the checkpoint; a shard it never mentions is a stray file."""
    write_checkpoint(tmp_path, [A, B])
    write_index(tmp_path, {"a": FIRST})
    assert opened(tmp_path).tensors.keys() == A.keys()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\udcff", "[" * 99999]
)
def test_an_index_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [A, B])
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(tmp_path, "index.json").file == path.name


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one.safetensors", A)
    write_tensors(tmp_path / "two.safetensors", A | B)
    error = refused(tmp_path, "'a' is stored twice: in one.safetensors and two.safetensors")
    assert error.tensor == "a"


def test_a_damaged_file_is_named_with_its_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [A, B])
    path = tmp_path / SECOND
    path.write_bytes(path.read_bytes()[:-1])
    error = refused(tmp_path, "cut short")
    assert error.file == SECOND
    assert "checkpoint my-model" in str(error)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff{}"])
def test_a_config_that_cannot_be_read_is_refused_when_asked_for(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, A)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    checkpoint = opened(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json of my-model is not"):
        _ = checkpoint.config


def test_links_are_followed_and_hidden_folders_are_not(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "blobs", A, {"x": 1})
    folder = tmp_path / "snapshot"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "junk.json").write_text("{}")
    (folder / ".gitattributes").write_text("")
    for name in ("model.safetensors", "config.json"):
        (folder / name).symlink_to(tmp_path / "blobs" / name)
    (folder / "gone.bin").symlink_to(tmp_path / "nothing")
    checkpoint = opened(folder)
    assert_holds(checkpoint, A)
    assert checkpoint.files.keys() == {"model.safetensors", "config.json", ".gitattributes"}


def test_ranges_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.json").write_text(json.dumps("0123456789"))
    place = Directory(tmp_path)
    assert place.read("sub/x.json", 1, 4) == b"012"
    assert place.read("sub/x.json", 9, 99) == b'89"'
    assert place.fetch("sub/x.json") == tmp_path / "sub" / "x.json"
    assert place.uri("sub/x.json") == str(tmp_path.resolve() / "sub" / "x.json")
    with pytest.raises(CheckpointError, match="cannot read absent"):
        place.read("absent", 0, 1)
