from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.adapters import lora_state, write_adapter


def test_info(cuvee: Any, here: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.up_proj": (12, 8) for i in (0, 1, 3)}
    write_adapter(here / "mine", lora_state(shapes), base_model_name_or_path="org/base", revision="v2")
    said = cuvee("lora", "info", "mine")
    assert (said.code, said.err) == (0, "")
    assert "trained on org/base@v2" in said.out
    (row,) = [line.split() for line in said.out.splitlines() if "up_proj" in line]
    assert row == ["up_proj", "3", "0-1,", "3", "4", "2", "12×8"]
    facts = json.loads(cuvee("lora", "info", "mine", "--json").out)
    assert facts["parameters"] == 3 * 4 * (12 + 8)
    assert facts["groups"][0]["layers"] == [0, 1, 3]


def test_info_of_what_is_none(cuvee: Any, here: Path) -> None:
    (here / "empty").mkdir()
    said = cuvee("lora", "info", "empty")
    assert said.code == 2
    assert said.err.startswith("error: empty is not an adapter")
    assert cuvee("lora", "info", "./nowhere").err.startswith("error: no checkpoint at nowhere")
