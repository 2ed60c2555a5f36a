"""Input from strangers, made to exhaust, to leak or to run: one error, exit code 2, and nothing done or written.

Each command that could hang or grow runs in a process of its own with a bound on processor time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import HubServer, use_hub
from support.tiny_models import Family, make_llama, recipe

LINEAR = """\
merge_method: linear
models:
  - {model: "@a", parameters: {weight: 0.5}}
  - {model: "@b", parameters: {weight: 0.5}}
"""
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
_BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (40, 40))
sys.argv[0] = "cuvee"
from cuvee.cli import main
main()
"""


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return make_llama(tmp_path / "family", names=("a", "b"))


def bounded(here: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cuvee ARGUMENTS` within one gigabyte and forty seconds of processor time."""
    return subprocess.run(
        [sys.executable, "-c", _BOUNDED, *arguments],
        cwd=here,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def refused(here: Path, words: str, *arguments: str, **environment: str) -> str:
    """What a command says that is refused with `words` in it and leaves nothing but the recipe."""
    done = bounded(here, *(arguments or ("merge", "recipe.yml", "out")), **environment)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr) < 5000
    assert words in done.stderr, done.stderr
    assert {path.name for path in here.iterdir()} <= {"recipe.yml"}
    return done.stderr


def header(raw: bytes, data: bytes = b"") -> bytes:
    return len(raw).to_bytes(8, "little") + raw + data


def tensors(count: int) -> bytes:
    entries = (b'"t%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (i, i, i + 1) for i in range(count))
    return header(b"{" + b",".join(entries) + b"}", bytes(count))


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists without end": (lambda: header(b'{"__metadata__":[' + b"[]," * 1_100_000 + b"[]]}"), "describe no tensors"),
    "numbers without end": (
        lambda: header(b'{"a":{"dtype":"U8","shape":[' + b"1," * 1_100_000 + b'1],"data_offsets":[0,1]}}', b"1"),
        "describe no tensors",
    ),
    "keys without end": (
        lambda: header(b"{" + b",".join(b'"%d":1' % i for i in range(1_100_000)) + b"}"),
        "describe no tensors",
    ),
    "depth without end": (lambda: header(b'{"a":' * 1_100_000), "describe no tensors"),
    "depth": (lambda: header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not JSON"),
    "more than a million tensors": (lambda: tensors((1 << 20) + 1), "too many tensors"),
    "a number of a million digits": (
        lambda: header(b'{"a":{"dtype":"U8","shape":[' + b"1" * 1_000_000 + b'],"data_offsets":[0,1]}}', b"1"),
        "not JSON",
    ),
    "a name of megabytes": (
        lambda: header(b'{"' + b"a" * 900_000 + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "longer than 1024 characters",
    ),
    "a name that steers the terminal": (
        lambda: header(b'{"\\u001b]0;pwned":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "cannot be printed",
    ),
    "a layer number of thousands of digits": (
        lambda: header(b'{"h.' + b"7" * 900 + b'.w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "do not hold the same tensors",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(case: str, family: Family, here: Path) -> None:
    make, words = HEADERS[case]
    (family.path("b") / "model.safetensors").write_bytes(make())
    (here / "recipe.yml").write_text(recipe(LINEAR, family))
    refused(here, words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": 5}, "does not name its architectures"),
        ({"architectures": [["Llama"]]}, "does not name its architectures"),
        ({"architectures": "LlamaForCausalLM"}, "does not name its architectures"),
        ('{"a":' * 200 + "1" + "}" * 200, "nests deeper"),
        ('{"x": [' + "[]," * 2_000_000 + "[]]}", "more values than it can need"),
        ('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "torch_dtype": "float32"}', "there twice"),
        ('{"text_config": {"torch_dtype": 1, "torch_dtype": 2}}', "there twice"),
        (" " * (17 << 20), "too large to be one"),
    ],
)
def test_configs(config: object, words: str, family: Family, here: Path) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    (family.path("a") / "config.json").write_text(text)
    (here / "recipe.yml").write_text(recipe(LINEAR, family))
    assert "config.json" in refused(here, words)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"weight_map": {"a": ["model.safetensors"]}}', "has no weight_map"),
        ('{"weight_map": {"a": "C:\\\\x.safetensors"}}', "outside the checkpoint"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', "outside the checkpoint"),
        ('{"weight_map": {"a": ""}}', "outside the checkpoint"),
        ("[" * 100_000, "not JSON"),
        ('{"weight_map": {' + ",".join(f'"{i}":"m"' for i in range(2_200_000)) + "}}", "more values than it can need"),
    ],
)
def test_indexes(index: str, words: str, family: Family, here: Path) -> None:
    (family.path("a") / "model.safetensors.index.json").write_text(index)
    (here / "recipe.yml").write_text(recipe(LINEAR, family))
    refused(here, words)


def test_a_hub_cache_is_made_of_links(family: Family, here: Path) -> None:
    """What huggingface_hub leaves in its cache: files are links to blobs, also those that an index names."""
    blobs, snapshot = here.parent / "blobs", here.parent / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(family.path("a").iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    (here / "recipe.yml").write_text(recipe(LINEAR, family).replace(str(family.path("a")), str(snapshot)))
    assert bounded(here, "merge", "recipe.yml", "out").returncode == 0
    assert (here / "out" / "tokenizer.json").is_file()
    assert not (here / "out" / "tokenizer.json").is_symlink()


def test_a_link_to_somebodys_secrets_is_not_published(family: Family, here: Path) -> None:
    secret = here.parent / "id_rsa"
    secret.write_text("PRIVATE KEY")
    (family.path("a") / "LICENSE").unlink()
    (family.path("a") / "LICENSE").symlink_to(secret)
    (here / "recipe.yml").write_text(recipe(LINEAR, family))
    assert "PRIVATE" not in refused(here, "LICENSE is a link to a file of another name outside")


RECIPES: dict[str, tuple[Callable[[], str], str]] = {
    "billion laughs": (
        lambda: (
            "a0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
            + LINEAR
        ),
        "expand without end",
    ),
    "flow depth": (lambda: "[" * 1_000_000, "nests deeper"),
    "block depth": (lambda: "- " * 1_000_000, "nests deeper"),
    "question marks": (lambda: "? " * 1_000_000, "nests deeper"),
    "a million keys": (lambda: "".join(f"k{i}: 1\n" for i in range(110_000)), "values"),
    "a tag that runs": (lambda: LINEAR + 'x: !!python/object/apply:os.system ["touch pwned"]\n', "has no meaning"),
    "a method of megabytes": (lambda: "merge_method: " + "tie" * 300_000 + "\nmodels: [{model: a}]\n", "unknown merge"),
    "a number of megabytes": (lambda: LINEAR + "x: " + "1" * 300_000 + "\n", "too long"),
    "layers without end": (
        lambda: (
            "merge_method: passthrough\nslices:\n"
            "- &s {sources: [{model: '@a', layer_range: [0, 3]}]}\n" + "- *s\n" * 20_000
        ),
        "expand without end",
    ),
    "a path of thousands": (lambda: LINEAR.replace("@a", "/" + "a" * 5000), "no checkpoint at"),
    "a path below a file": (lambda: LINEAR.replace("@a", "@a/config.json/x"), "no checkpoint at"),
    "a user that is not there": (lambda: LINEAR.replace("@a", "~nobody-of-that-name/x"), "no checkpoint at"),
    "the whole machine": (lambda: LINEAR.replace("@a", "/proc"), "/proc"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(case: str, family: Family, here: Path) -> None:
    make, words = RECIPES[case]
    (here / "recipe.yml").write_text(recipe(make(), family))
    refused(here, words)


@pytest.mark.parametrize(
    ("source", "words"), [("/dev/zero", "too large"), ("/", "is a directory"), ("a" * 5000, "cannot be read")]
)
def test_recipe_files(source: str, words: str, here: Path) -> None:
    refused(here, words, "plan", source)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--memory", "9" * 400), "is not a size"),
        (("--memory", "1kB"), "do not fit the memory budget"),
        (("--out-shard-size", "٣GB"), "is not a size"),
    ],
)
def test_options(option: tuple[str, str], words: str, family: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(LINEAR, family))
    refused(here, words, "merge", "recipe.yml", "out", *option)


@pytest.mark.parametrize("place", [f"https://user:{TOKEN}@hf.co/org/name", f"org/name@{TOKEN}", "hunter2hunter2"])
def test_recipes_with_a_token_are_refused_and_do_not_repeat_it(place: str, family: Family, here: Path) -> None:
    """Such a recipe would be published beside the weights; `HF_TOKEN` may look like anything."""
    text = recipe(LINEAR.replace("@a", place), family)
    (here / "recipe.yml").write_text(text)
    said = refused(here, "holds an access token", HF_TOKEN="hunter2hunter2", HF_HUB_OFFLINE="1")
    assert "recipe.yml:3" in said
    assert TOKEN not in said
    assert "hunter2" not in said


@pytest.fixture
def server(family: Family) -> Iterator[HubServer]:
    with HubServer() as running:
        for name in "ab":
            running.add(f"vineyard/{name}", family.path(name))
        yield running


@pytest.mark.parametrize("good", [True, False])
def test_the_token_appears_nowhere(good: bool, server: HubServer, here: Path, cuvee: Any) -> None:
    """A merge from the Hub, finished or refused: neither what it says nor what it writes holds the token."""
    (here / "recipe.yml").write_text(
        LINEAR.replace("@a", "vineyard/a").replace("@b", f"vineyard/{'b' if good else 'c'}")
    )
    with use_hub(server, here.parent / "cache", token=TOKEN):
        said = cuvee("merge", "recipe.yml", "out", "-v")
    assert said.code == (0 if good else 2)
    assert TOKEN not in said.out + said.err
    assert (here / "out").is_dir() == good
    for path in (here / "out").rglob("*"):
        assert TOKEN.encode() not in path.read_bytes(), path
