"""A plan of three models of 671 billion parameters: made from headers alone, in less than a gigabyte."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from support.huge import deepseek_v3_shapes, write_hollow

RECIPE = """\
merge_method: ties
base_model: {folder}/base
models:
  - model: {folder}/a
    parameters:
      weight: [{{filter: self_attn, value: [0, 0.5, 1]}}, {{filter: mlp, value: [1, 0.2]}}, {{value: 0.5}}]
      density: [0.3, 0.6]
  - {{model: {folder}/b, parameters: {{weight: 0.4, density: 0.5}}}}
dtype: bfloat16
"""
# What takes a minute of processor time is not linear in the tensors any more: it takes five seconds.
PLAN = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from cuvee import api
opened = api.open_recipe(Path(sys.argv[1]))
cost = api.cost(opened, Path(sys.argv[1]).parent, machine="read=3GB/s,write=1GB/s,cores=64,nodes=8", probe=False)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([len(opened.plan.ops), opened.plan.elements, len(opened.plan.shards), cost.seconds, peak * 1024]))
"""


def test_the_shapes_are_deepseek_v3s() -> None:
    shapes = deepseek_v3_shapes()
    assert len(shapes) == 45395
    assert sum(map(math.prod, shapes.values())) == pytest.approx(671.03e9, rel=1e-4)


def test_it_is_planned_from_headers(tmp_path: Path) -> None:
    shapes = deepseek_v3_shapes()
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "tie_word_embeddings": False,
    }
    for name in ("base", "a", "b"):
        write_hollow(tmp_path / name, shapes, config)
    (tmp_path / "recipe.yml").write_text(RECIPE.format(folder=tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "recipe.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ops, elements, shards, seconds, peak = json.loads(done.stdout)
    assert (ops, elements) == (len(shapes), sum(map(math.prod, shapes.values())))
    assert shards > 250
    assert peak < 1e9
    assert 3 * 2 * elements / 3e9 / 8 <= seconds < 3 * 2 * elements / 3e9  # reading alone, on eight machines, or on one
