"""Every class of transformers that can be made tiny merges whole, with itself and with a sibling, and loads again."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuvee
from support.corpus import parameters, reload, save_siblings, tiny
from support.corpus_classes import CLASSES, NOT_TINY, QUICK
from support.tiny_models import State, load_checkpoint

RECIPES = {
    "linear": """
merge_method: linear
models: [{model: "@first"}, {model: "@second"}]
parameters: {weight: 0.5}
""",
    "slerp": """
merge_method: slerp
base_model: "@first"
models: [{model: "@second"}]
parameters: {t: 0.5}
""",
}
SEEN = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CLASSES]


def halfway(method: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The middle of two tensors, in float64: straight, or on the arc between them."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float(np.vdot(a, b) / ((norms[0] * norms[1]) or 1.0))
    if method == "linear" or abs(cosine) > 0.9995:
        return np.asarray((a + b) / 2)
    return np.asarray((a + b) * math.sin(math.acos(cosine) / 2) / math.sin(math.acos(cosine)))


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own defaults
@pytest.mark.parametrize("name", SEEN)
def test_class_merges_whole(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    first, second = save_siblings(model, tmp_path)
    same = shutil.copytree(first, tmp_path / "same")
    mine, theirs = load_checkpoint(first), load_checkpoint(second)
    for method, text in RECIPES.items():
        for other in (same, second):
            out = tmp_path / f"{method}-{other.name}"
            report = cuvee.merge(text.replace("@first", str(first)).replace("@second", str(other)), out)
            got = load_checkpoint(out)
            assert got.keys() == mine.keys()
            assert report.dropped == ()
            assert (out / "config.json").read_bytes() == (first / "config.json").read_bytes()
            if other == same:
                assert {key for key in got if got[key].tobytes() != mine[key].tobytes()} == set()
            else:
                _assert_halfway(method, got, mine, theirs)
                assert reload(type(model), out) == (parameters(model), {})


def _assert_halfway(method: str, got: State, mine: State, theirs: State) -> None:
    for key, tensor in got.items():
        assert tensor.dtype == mine[key].dtype
        assert tensor.shape == mine[key].shape
        if not np.issubdtype(tensor.dtype, np.floating):
            assert tensor.tobytes() == mine[key].tobytes(), key
            continue
        if key.endswith("inv_freq"):  # computed from the config, which is the first's
            np.testing.assert_array_equal(tensor, mine[key])
            continue
        want = halfway(method, mine[key], theirs[key])
        np.testing.assert_allclose(
            tensor, want, rtol=1e-6, atol=1e-6 * (abs(want).max(initial=0.0) or 1.0), err_msg=key
        )


def test_the_corpus_is_broad() -> None:
    assert len(set(CLASSES)) == len(CLASSES) >= 90
    assert set(QUICK) <= set(CLASSES)
    assert not set(CLASSES) & set(NOT_TINY)
    assert all(NOT_TINY.values())
