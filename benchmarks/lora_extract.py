"""`cuvee lora extract` raced against mergekit-extract-lora: CPU time, wall time, memory, and the outputs' errors.

    python benchmarks/lora_extract.py --models FOLDER                     FOLDER/base and FOLDER/a
    python benchmarks/lora_extract.py --models FOLDER --mergekit ENV      in turn with a virtual environment's mergekit
    python benchmarks/lora_extract.py --models FOLDER --low-rank 32       of a fine-tune whose change has that rank

`benchmarks/inputs.py FOLDER` makes such models (`--size small`: minutes of mergekit instead of many). Their change is
noise of a flat spectrum, the hardest that there is for a randomised decomposition. The error is worked out from the
files that either side wrote, by the same code: the Frobenius norm of what all factors lack over that of the change
of the matrices, of all together, and of each by itself (mean and largest). On a busy machine the figure that counts is
CPU time, mergekit with OMP_NUM_THREADS=1: BLAS threads that share cores spin, and that counts as work. Target: five
times faster at equal error.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import Run, measure, warm

PREFIX = "base_model.model."


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with base and a")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/lora_extract"), help="where outputs go")
    parser.add_argument("--mergekit", type=Path, metavar="ENV", help="virtual environment that holds mergekit")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="kill a run after so long")
    parser.add_argument("--low-rank", type=int, metavar="RANK", help="make and use a fine-tune of this rank")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has Cuvee")
    parser.add_argument("--error-of", type=Path, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.error_of:
        print(json.dumps(error_of(*chosen.error_of)))
        return 0
    base = (chosen.models / "base").resolve()
    if chosen.make:
        make_low_rank(base, chosen.make, chosen.low_rank)
        return 0
    scratch = chosen.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    tuned = (chosen.models / "a").resolve()
    own = [chosen.python, str(Path(__file__).resolve()), "--models", str(chosen.models)]
    if chosen.low_rank:
        tuned = scratch / f"tuned-{chosen.low_rank}"
        if not tuned.exists():
            subprocess.run([*own, "--low-rank", str(chosen.low_rank), "--make", str(tuned)], check=True)
    print(f"{tuned.name}, rank {chosen.rank}, {chosen.rounds} rounds; medians")
    print(f"{'':<12}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'error':>12}{'mean':>10}{'largest':>10}")
    rows = {}
    for name, command in sides(chosen, tuned, base).items():
        out = scratch / name
        runs = [race([*command, str(out)], out, [base, tuned], chosen.limit) for _ in range(chosen.rounds)]
        if any(run.exit_code for run in runs) and not (out / "adapter_model.safetensors").exists():
            print(f"{name:<12}failed: {runs[-1].output.splitlines()[-1:]}")
            continue
        said = subprocess.run([*own, "--error-of", str(tuned), str(base), str(out)], check=True, capture_output=True)
        rows[name] = statistics.median(run.cpu_s for run in runs)
        wall = statistics.median(run.wall_s for run in runs)
        memory = max(run.peak_mb for run in runs)
        whole, mean, largest = json.loads(said.stdout)
        figures = f"{rows[name]:>9.1f}{wall:>9.1f}{memory:>9.0f}{whole:>12.6f}{mean:>10.6f}{largest:>10.6f}"
        print(f"{name:<12}{figures}", flush=True)
    if len(rows) == 2:
        print(f"CPU time: {rows['mergekit'] / rows['cuvee']:.1f} times less")
    return 0


def sides(chosen: argparse.Namespace, tuned: Path, base: Path) -> dict[str, list[str]]:
    """The commands that are compared, each without its output."""
    models = ["--model", str(tuned), "--base-model", str(base), "--max-rank", str(chosen.rank)]
    quiet = ["--quiet", "--no-copy-tokenizer", "--out-path"]
    found = {"cuvee": [chosen.python, "-m", "cuvee", "lora", "extract", *models, "--overwrite", *quiet]}
    if chosen.mergekit:
        program = str(chosen.mergekit / "bin" / "mergekit-extract-lora")
        found["mergekit"] = [program, *models, "--no-write-model-card", *quiet]
    return found


def race(command: list[str], out: Path, inputs: Sequence[Path], limit: float) -> Run:
    """One run, from files that are in the page cache."""
    shutil.rmtree(out, ignore_errors=True)
    warm([file for folder in inputs for file in sorted(folder.glob("*.safetensors"))])
    return measure(command, out.parent / f"{out.name}.log", limit_s=limit)


def error_of(tuned: Path, base: Path, adapter: Path) -> tuple[float, float, float]:
    """The relative error of an adapter's factors, from the files alone: of all, mean and largest of a matrix."""
    import numpy as np

    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = dict(tensors(adapter / "adapter_model.safetensors"))
    models = [dict(tensors(folder / "model.safetensors")) for folder in (tuned, base)]
    totals, missing = [], []
    for key, down in factors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
        scaling = alpha / config.get("rank_pattern", {}).get(module, config["r"])
        up = factors[key.replace("lora_A", "lora_B")].astype(np.float32)
        change = np.subtract(*(model[f"{module}.weight"].astype(np.float32) for model in models))
        lack = change - scaling * (up @ down.astype(np.float32))
        totals.append(float(np.vdot(change, change)))
        missing.append(float(np.vdot(lack, lack)))
    each = [math.sqrt(part / whole) for part, whole in zip(missing, totals, strict=True) if whole]
    return math.sqrt(sum(missing) / sum(totals)), statistics.mean(each), max(each)


def make_low_rank(base: Path, out: Path, rank: int) -> None:
    """A fine-tune whose every matrix changed by a product of this rank, in float32."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(rank)
    state = {}
    for name, values in tensors(base / "model.safetensors"):
        wide = values.astype(np.float32)
        if wide.ndim == 2 and "embed" not in name:
            rows, columns = wide.shape
            left = rng.standard_normal((rows, rank), np.float32) * np.geomspace(1, 0.02, rank, dtype=np.float32)
            wide += 0.001 * left @ rng.standard_normal((rank, columns), np.float32) / math.sqrt(rank)
        state[name] = wide
    partial = out.with_name(out.name + ".partial")
    partial.mkdir()
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    partial.replace(out)


def tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor of a safetensors file, mapped."""
    import ml_dtypes
    import numpy as np

    dtypes = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
    data = np.memmap(file, np.uint8, "r")
    length = int.from_bytes(bytes(data[:8]), "little")
    for name, entry in json.loads(bytes(data[8 : 8 + length])).items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            yield name, data[start:stop].view(dtypes[entry["dtype"]]).reshape(entry["shape"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
