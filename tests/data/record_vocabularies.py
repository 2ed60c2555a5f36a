"""Writes mergekit-0.1.5-vocabularies.npz: what mergekit makes of vocabularies that differ.

python -m venv ENV && ENV/bin/pip install mergekit==0.1.5 torch==2.13.0 transformers==5.0.0
PYTHONPATH=tests .venv/bin/python tests/data/record_vocabularies.py ENV

The tokenizers are kept beside the results, so that training them otherwise one day changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from support.recorded_vocabularies import KINDS, RESULTS, SOURCES, TABLES, models, recipe, trained


def main(environment: Path) -> None:
    """Runs every recipe."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            texts = trained(kind)
            found |= {f"{kind}/{name}": np.array(text) for name, text in texts.items()}
            homes = models(Path(scratch) / kind, texts)
            for source in SOURCES:
                written, out = Path(scratch) / "recipe.yml", Path(scratch) / f"{kind}-{source}"
                written.write_text(yaml.safe_dump(recipe(homes, source)), encoding="utf-8")
                subprocess.run([environment / "bin" / "mergekit-yaml", written, out], check=True)
                ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab(with_added_tokens=True)
                state = load_file(out / "model.safetensors")
                found[f"{kind}/{source}/tokens"] = np.array(sorted(ids))
                for table in TABLES:
                    found[f"{kind}/{source}/{table}"] = state[table][[ids[token] for token in sorted(ids)]]
    np.savez_compressed(RESULTS, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
