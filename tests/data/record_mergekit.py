"""Writes mergekit-0.1.5.npz: what mergekit makes of the recipes in `methods/recorded.py`.

python -m venv ENV && ENV/bin/pip install mergekit==0.1.5 torch==2.13.0 transformers==5.0.0
PYTHONPATH=tests .venv/bin/python tests/data/record_mergekit.py ENV
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from methods.recorded import CODES, KEPT, RECIPES, RESULTS, inputs


def main(environment: Path) -> None:
    """Runs every recipe in both dtypes."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in CODES:
            family = inputs(Path(scratch) / dtype, dtype)
            for name, recorded in RECIPES.items():
                recipe, out = Path(scratch) / "recipe.yml", Path(scratch) / f"out-{dtype}-{name}"
                recipe.write_text(yaml.safe_dump(recorded.recipe(family, dtype)), encoding="utf-8")
                command = [environment / "bin" / "mergekit-yaml", recipe, out, "--no-copy-tokenizer"]
                subprocess.run(command, check=True, capture_output=True)
                for file in out.glob("*.safetensors"):
                    for tensor, values in load_file(file).items():
                        if not any(part in tensor for part in KEPT):
                            continue
                        stored = values if values.dtype == np.float32 else values.view(np.uint16)
                        found[f"{dtype}/{name}/{tensor}"] = stored
    np.savez_compressed(RESULTS, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
