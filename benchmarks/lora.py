"""Five `base+adapter` inputs raced against five dense models of the same size: CPU time, wall time, memory.

    python benchmarks/lora.py --models FOLDER             FOLDER/base, and dense siblings FOLDER/a, FOLDER/b, ...
    python benchmarks/lora.py --models FOLDER --rank 64   larger adapters

`benchmarks/speed.py` leaves such models in its scratch folder. Adapters on every linear module are made beside them
(random, in safetensors, as PEFT lays them out); dense siblings are repeated as hard links where there are fewer than
five. The two recipes differ in nothing but their inputs, and take turns; the figure that counts on a busy machine is
CPU time. Targets: at most 300 MB and 1.3 times the dense recipe's time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Run, measure, warm

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear")
COUNT = 5


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with base, a, b, ...")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/lora"), help="where adapters and outputs go")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has Cuvee")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.make:
        make_adapters(chosen.models / "base", chosen.make, chosen.rank)
        return 0
    scratch = chosen.scratch.resolve() / f"rank-{chosen.rank}"
    scratch.mkdir(parents=True, exist_ok=True)
    if not (scratch / "adapter4" / "adapter_config.json").exists():
        own = [sys.argv[0], "--models", str(chosen.models), "--rank", str(chosen.rank), "--make", str(scratch)]
        subprocess.run([chosen.python, *own], check=True)
    base = (chosen.models / "base").resolve()
    sides = {
        "dense": dense_models(chosen.models, scratch),
        "adapters": [f"{base}+{scratch}/adapter{i}" for i in range(5)],
    }
    warm(sorted(file for folder in chosen.models.iterdir() for file in folder.glob("*.safetensors")))
    print(f"rank {chosen.rank}, {chosen.rounds} rounds; medians")
    print(f"{'method':<18}{'inputs':<10}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'ratio CPU':>11}{'ratio wall':>12}")
    for method in chosen.methods.split(","):
        race(method, sides, base, scratch, chosen.python, chosen.rounds)
    return 0


def race(method: str, sides: dict[str, list[str]], base: Path, scratch: Path, python: str, rounds: int) -> None:
    """Runs both sides in turn and prints a line for each."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, models in sides.items():
            recipe = scratch / f"{method}-{side}.yml"
            recipe.write_text(json.dumps(recipe_of(method, base, models)))
            command = [python, "-m", "cuvee", "merge", str(recipe), str(scratch / "out"), "--overwrite", "--quiet"]
            run = measure(command, scratch / "log")
            if run.exit_code:
                raise SystemExit(f"{method} of {side} failed: {run.output}")
            runs[side].append(run)
    shutil.rmtree(scratch / "out")
    cpu = {side: statistics.median(run.cpu_s for run in found) for side, found in runs.items()}
    wall = {side: statistics.median(run.wall_s for run in found) for side, found in runs.items()}
    for side, found in runs.items():
        peak = max(run.peak_mb for run in found)
        ratios = f"{cpu[side] / cpu['dense']:>11.2f}{wall[side] / wall['dense']:>12.2f}"
        print(f"{method:<18}{side:<10}{cpu[side]:>8.2f}{wall[side]:>8.2f}{peak:>9.0f}{ratios}", flush=True)


def recipe_of(method: str, base: Path, models: list[str]) -> dict[str, object]:
    parameters: dict[str, float] = {"weight": 0.2} | ({"density": 0.5} if "ties" in method or "dare" in method else {})
    entries = [{"model": model, "parameters": parameters} for model in models]
    head = {"merge_method": method, "dtype": "bfloat16", "models": entries}
    return head if method == "linear" else {**head, "base_model": str(base)}


def dense_models(models: Path, scratch: Path) -> list[str]:
    """Five dense siblings, the last ones hard links to the first: other files, but no more bytes on the disk."""
    found = sorted(folder.resolve() for folder in models.iterdir() if folder.is_dir() and folder.name != "base")
    for number in range(COUNT - len(found)):
        link = scratch / f"dense{number}"
        if not link.exists():
            link.mkdir()
            for file in found[number].iterdir():
                try:
                    os.link(file, link / file.name)
                except OSError:  # another file system
                    shutil.copyfile(file, link / file.name)
        found.append(link)
    return [str(folder) for folder in found[:COUNT]]


def make_adapters(base: Path, out: Path, rank: int) -> None:
    """Five random adapters on every linear module of the layers of `base`."""
    import numpy as np
    from safetensors.numpy import save_file

    from cuvee.tensors.checkpoint import open_checkpoint
    from cuvee.tensors.location import Directory

    random = np.random.default_rng(0)
    shapes = {
        name.removesuffix(".weight"): stored.shape
        for name, stored in open_checkpoint(Directory(base), "base").tensors.items()
        if "layers." in name and len(stored.shape) == 2
    }
    for number in range(COUNT):
        folder = out / f"adapter{number}"
        folder.mkdir(exist_ok=True)
        tensors = {}
        for module, (rows, columns) in shapes.items():
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = (random.standard_normal((rank, columns)) * 0.02).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = (random.standard_normal((rows, rank)) * 0.02).astype(np.float32)
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
