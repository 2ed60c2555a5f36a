"""The footprint: what a process is measured to hold is what one holds that really merges."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.engine.footprint import _Watched
from cuvee.numerics.block import Block
from cuvee.numerics.select import select_kth_largest, working_bytes
from support.checkpoints import write_checkpoint
from support.tiny_models import BFLOAT16

ESTIMATE_AND_MERGE = """
import json, sys
from pathlib import Path
from cuvee import MergeOptions, api
recipe, out, processes = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
options = MergeOptions(threads=2, processes=processes)
print(api.cost(api.open_recipe(recipe, options), out, options).peak_memory)
sys.stdout.flush()
"""
MERGE = ESTIMATE_AND_MERGE.replace(
    "api.cost(api.open_recipe(recipe, options), out, options)", "api.merge(recipe, out, options)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of 16 million parameters, in tensors of which some methods keep scores or masks."""
    made = tmp_path_factory.mktemp("models")
    for name in ("base", "a", "b"):
        random = np.random.default_rng(ord(name[0]))
        state = {f"model.layers.{i}.w.weight": random.standard_normal((2048, 2048), np.float32) for i in range(4)}
        write_checkpoint(made / name, {key: value.astype(BFLOAT16) for key, value in state.items()}, {})
    return made


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", ["linear", "dare_ties", "arcee_fusion"])
def test_memory_is_known_within_a_fifth(method: str, processes: int, folder: Path, tmp_path: Path) -> None:
    names = {"linear": "ab", "dare_ties": "ab", "arcee_fusion": "a"}[method]
    own = {"linear": {"weight": 0.5}, "dare_ties": {"weight": 0.5, "density": 0.5}, "arcee_fusion": {}}[method]
    models = [{"model": str(folder / name), "parameters": own} for name in names]
    base = {} if method == "linear" else {"base_model": str(folder / "base")}
    recipe = json.dumps({"merge_method": method, "models": models, "dtype": "bfloat16", **base})
    planned, taken = (
        int(subprocess.check_output([sys.executable, "-c", code, recipe, str(tmp_path / "out"), str(processes)]))
        for code in (ESTIMATE_AND_MERGE, MERGE)
    )
    assert 0.8 < planned / taken < 1.2, f"{planned / 1e6:.0f} MB planned, {taken / 1e6:.0f} MB taken"


def run(function: Callable[[Any], Any], ranges: Iterable[Any]) -> list[Any]:
    return [function(span) for span in ranges]


@pytest.mark.parametrize(("size", "searches"), [(1 << 22, 1), (1 << 22, 3), (1 << 24, 2)])
def test_what_searches_take_is_known_beforehand(size: int, searches: int) -> None:
    """Within a factor of two of what tracemalloc sees beyond the blocks."""
    values = [np.abs(np.random.default_rng(i).standard_normal(size, np.float32)) for i in range(searches)]
    grain = 1 << 18
    spans = [(start, start + grain) for start in range(0, size, grain)]
    tracemalloc.start()
    select_kth_largest(lambda a, b: [value[a:b] for value in values], spans, [size // 2] * searches, run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 < working_bytes(size, [0.5] * searches, searches) / peak < 2


def test_what_is_searched_for_is_seen() -> None:
    """Two ranks in each of two arrays: four searches, two arrays."""
    values = np.abs(np.random.default_rng(0).standard_normal((2, 1000), np.float32))
    scan = _Watched((1000,), 2, ((0, 500), (500, 1000)), lambda a, b: Block((values[0, a:b], values[1, a:b])), run)

    def scores(block: Block) -> Sequence[Any]:
        return [block[0], block[1], block[0], block[1]]

    cuts = scan.kth_largest(scores, [100, 100, 900, 900])
    assert [cut.value for cut in cuts] == [np.sort(values[i])[-k] for k in (100, 900) for i in (0, 1)]
    assert scan.searches == [((0.1, 0.1, 0.9, 0.9), 2)]
