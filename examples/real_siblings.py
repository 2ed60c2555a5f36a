"""The main job on real checkpoints: two families of siblings, merged, checked against float64, loaded and asked.

    python examples/real_siblings.py [--scratch DIR] [--docs FILE]

rxnfp's BERT and its two fine-tunes on chemical reactions; SmolLM2-135M-Instruct and two short fine-tunes made here.
Prints tables and writes them between the markers of docs/real-models.md. The first run installs three packages and
trains for some minutes; later ones find everything in the scratch folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_inputs import BERTS, bert_encoders, held_out_questions, original_berts, smollm2_siblings
from real_oracle import Array, Distance, Formula, dare, distance, linear, slerp, task_arithmetic, ties
from real_probes import LEFT, REACTIONS, ask, fingerprints, graded, loaded, same_class

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
MERGE_COLUMNS = ("method", "s", "MB moved", "peak MB", "nearest to float64", "error, ulp of result",
                 "error, ulp of inputs", "keys missing, unexpected")  # fmt: skip

Recipe = dict[str, Any]

_CHILD = """
import json, sys, cuvee
report = cuvee.merge(sys.argv[1], sys.argv[2], cuvee.MergeOptions(overwrite=True))
peak = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
facts = ("seconds", "bytes_read", "bytes_written", "merged", "copied")
print(json.dumps({"peak": peak[0], **{name: getattr(report, name) for name in facts}}))
"""


@dataclass(frozen=True)
class Table:
    """A table as people read it: for the terminal and for Markdown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown under its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def show(self) -> None:
        """Prints the table."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as Drawn

        drawn = Drawn(*map(escape, self.columns), title=escape(self.title), title_justify="left")
        for cells in self.rows:
            drawn.add_row(*map(escape, cells))
        Console(width=170).print(drawn)


@dataclass(frozen=True)
class Merge:
    """A finished merge: where it is, and what its report says."""

    out: Path
    facts: dict[str, Any]

    @property
    def cost(self) -> list[str]:
        """Seconds, bytes moved and peak memory, as cells."""
        moved = (self.facts["bytes_read"] + self.facts["bytes_written"]) / 1e6
        return [f"{self.facts['seconds']:.2f}", f"{moved:.0f}", f"{self.facts['peak'] / 1e6:.0f}"]

    def row(self, name: str, far: Distance | None, keys: str) -> list[str]:
        """Cost, exactness and how it loads, as cells; a copy has no arithmetic to be exact in."""
        if far is None:
            return [name, *self.cost, "copied", "0", "0", keys]
        nearest = f"{100 * far.nearest / far.elements:.4f} % (all but {far.elements - far.nearest})"
        return [name, *self.cost, nearest, f"{far.own_ulp:.3g}", f"{far.input_ulp:.3g}", keys]


def merge(recipe: Recipe, out: Path) -> Merge:
    """The merge of `recipe` into `out`, by `cuvee.merge` in a process of its own, so that memory is the merge's alone.

    Peak memory is the kernel's high-water mark of that process: getrusage would carry over what this one holds.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    written = out.with_name(out.name + ".yml")
    written.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    command = [sys.executable, "-c", _CHILD, str(written), str(out)]
    return Merge(out, json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def recipe_of(
    method: str, models: Sequence[tuple[Path, dict[str, float]]], base: Path | None = None, **parameters: float
) -> Recipe:
    """A recipe as a mapping: models with their own parameters, then those of all."""
    listed = [{"model": str(path), "parameters": own} for path, own in models]
    top = {"base_model": str(base)} if base else {}
    return {"merge_method": method, "models": listed, "parameters": parameters, **top}


def refusals(originals: dict[str, Path], scratch: Path) -> list[tuple[str, str]]:
    """What `cuvee merge` says to each pair of the checkpoints as they are shipped."""
    told = []
    for one, other in [(BERTS[0], BERTS[1]), (BERTS[0], BERTS[2]), (BERTS[1], BERTS[2])]:
        written = scratch / "as-they-are.yml"
        written.write_text(json.dumps(recipe_of("linear", [(Path(name), {"weight": 1}) for name in (one, other)])))
        command = [sys.executable, "-m", "cuvee", "merge", str(written), str(scratch / "never")]
        done = subprocess.run(command, cwd=originals[one].parent, capture_output=True, text=True, check=False)
        told.append((f"{one} with {other}: exit code {done.returncode}", done.stderr.strip()))
    return told


def bert_jobs(berts: dict[str, Path], scratch: Path) -> dict[str, tuple[Recipe, list[Path], Formula]]:
    """Method -> (recipe, inputs, formula) for the three encoders."""
    base, *tuned = (berts[name] for name in BERTS)
    every = [base, *tuned]
    shares, weights, densities = (1.0, 2.0, 3.0), (0.7, 0.6), (0.5, 0.3)
    masks = dare_masks(base, tuned, densities, scratch / "bert" / "masks")
    weighted = [(path, {"weight": w}) for path, w in zip(tuned, weights, strict=True)]
    thinned = [(path, {**own, "density": p}) for (path, own), p in zip(weighted, densities, strict=True)]
    mean = recipe_of("linear", [(path, {"weight": w}) for path, w in zip(every, shares, strict=True)])
    arc = recipe_of("slerp", [(base, {}), (tuned[1], {})], base, t=0.4)
    added = recipe_of("task_arithmetic", weighted, base, **{"lambda": 0.9})
    return {
        "linear": (mean, every, linear(shares)),
        "slerp": (arc, [base, tuned[1]], slerp(0.4)),
        "task_arithmetic": (added, every, task_arithmetic(weights, 0.9)),
        "ties": (recipe_of("ties", thinned, base), every, ties(weights, densities)),
        "dare_linear": (recipe_of("dare_linear", thinned, base), every, dare(weights, masks, election=False)),
        "dare_ties": (recipe_of("dare_ties", thinned, base), every, dare(weights, masks, election=True)),
    }


def dare_masks(
    base: Path, tuned: Sequence[Path], densities: Sequence[float], folder: Path
) -> Callable[[str], list[Array]]:
    """The random masks, read off two merges in which all but one model weigh nothing: where the result left the base.

    A mask depends on seed, tensor and the model's position, not on method or weight, so these are the masks that the
    merges under test must have used. Where a model does not differ from the base, the mask has no effect.
    """
    from safetensors.numpy import load_file

    probes = []
    for position in range(len(tuned)):
        models = [(path, {"weight": float(i == position), "density": densities[i]}) for i, path in enumerate(tuned)]
        made = merge(recipe_of("dare_linear", models, base, rescale=False), folder / str(position))
        probes.append(load_file(made.out / "model.safetensors"))
    origin = load_file(base / "model.safetensors")
    return lambda name: [probe[name] != origin[name] for probe in probes]


def bert_tables(scratch: Path) -> list[Table]:
    """The merges of the three encoders: their cost and exactness, and what the merged models see in reactions."""
    berts = bert_encoders(scratch)
    rows, models = [], {name: loaded(path, "BertModel")[0] for name, path in berts.items()}
    for method, (recipe, inputs, formula) in bert_jobs(berts, scratch).items():
        made = merge(recipe, scratch / "bert" / "merged" / method)
        models[method], keys = loaded(made.out, "BertModel")
        rows.append(made.row(method, distance(made.out, inputs, formula), keys))
    prints = {name: fingerprints(model, berts[BERTS[0]] / "vocab.txt") for name, model in models.items()}
    count = len(REACTIONS) * len(LEFT)
    seen = []
    for name, own in prints.items():
        cosines = [f"{(own * prints[parent]).sum(axis=1).mean():.3f}" for parent in BERTS]
        seen.append([name, *cosines, f"{same_class(own)} of {count}"])
    size = models[BERTS[0]].num_parameters() / 1e6
    near = f"Embeddings of {count} reactions: mean cosine to each parent's; nearest neighbour of the same class"
    return [
        Table(f"Three BERT encoders (float32, {size:.1f} M parameters each)", MERGE_COLUMNS, rows),
        Table(near, ("model", *BERTS, "same class"), seen),
    ]


def pickle_tables(scratch: Path) -> list[Table]:
    """Merges straight from rxnfp's `pytorch_model.bin`, against the same from safetensors."""
    originals, berts = original_berts(scratch), bert_encoders(scratch)
    base, tuned, folder = BERTS[0], BERTS[1], scratch / "bert" / "bin"
    itself = merge(recipe_of("linear", [(originals[base], {"weight": 1})] * 2), folder / "itself")
    rows = [[f"linear, {base}.bin with itself", "the file", equal_tensors(itself.out, originals[base])]]
    for method in ("task_arithmetic", "ties"):
        recipes = [recipe_of(method, [(found[tuned], {"weight": 0.7})], berts[base]) for found in (originals, berts)]
        one, other = (merge(recipe, folder / f"{method}-{i}").out for i, recipe in enumerate(recipes))
        rows.append([f"{method}, {tuned}.bin on {base}", "both from safetensors", equal_tensors(one, other)])
    return [Table("Read straight from pytorch_model.bin", ("merge", "compared with", "result"), rows)]


def tensors_of(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint in one file."""
    import torch
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    pickled = folder / "pytorch_model.bin"
    return load_file(file) if file.is_file() else dict(torch.load(pickled, map_location="cpu", weights_only=True))


def equal_tensors(one: Path, other: Path) -> str:
    """How many tensors of two checkpoints are equal in every bit."""
    import torch

    left, right = (
        {name: (t.dtype, t.contiguous().view(-1).view(torch.uint8)) for name, t in tensors_of(folder).items()}
        for folder in (one, other)
    )
    shared = left.keys() & right.keys()
    same = [n for n in shared if left[n][0] == right[n][0] and torch.equal(left[n][1], right[n][1])]
    return f"{len(same)} of {len(left.keys() | right.keys())} tensors equal in every bit"


def smollm2_jobs(base: Path, tuned: Sequence[Path]) -> dict[str, tuple[Recipe, list[Path], Formula | None]]:
    """Method -> (recipe, inputs, formula) for SmolLM2 and its siblings; the stack is copied and needs no formula."""
    both = [(path, {"weight": 1.0}) for path in tuned]
    thin = [(path, {"weight": 1.0, "density": 0.5}) for path in tuned]
    ones = (1.0,) * len(tuned)
    return {
        "linear": (recipe_of("linear", both), [*tuned], linear(ones)),
        "task_arithmetic": (recipe_of("task_arithmetic", both, base), [base, *tuned], task_arithmetic(ones)),
        "ties": (recipe_of("ties", thin, base), [base, *tuned], ties(ones, (0.5,) * len(tuned))),
        "passthrough, 32 layers": (stack_recipe(base), [base], None),
    }


def stack_recipe(base: Path) -> Recipe:
    """Layers 0-19 and 18-29 of one model on top of each other: 32 layers where there were 30."""
    slices = [{"sources": [{"model": str(base), "layer_range": span}]} for span in ([0, 20], [18, 30])]
    return {"merge_method": "passthrough", "slices": slices}


def smollm2_tables(scratch: Path) -> list[Table]:
    """The merges of SmolLM2's siblings: their cost and exactness, and what each model answers."""
    questions, kind = held_out_questions(), "AutoModelForCausalLM"
    models = smollm2_siblings(scratch)
    base, *tuned = models.values()
    rows, asked, sizes = [], [], []

    def probe(name: str, folder: Path) -> str:
        model, keys = loaded(folder, kind)
        on_disk = tensors_of(folder)
        head = "yes" if "lm_head.weight" in on_disk else "no"
        sizes.append([name, f"{model.num_parameters()}", f"{sum(t.numel() for t in on_disk.values())}", head])
        asked.append([name, *graded(ask(model, folder, questions), questions)])
        return keys

    for name, folder in models.items():
        probe(name, folder)
    for method, (recipe, inputs, formula) in smollm2_jobs(base, tuned).items():
        made = merge(recipe, scratch / "smollm2" / "merged" / method.split(",")[0])
        far = distance(made.out, inputs, formula) if formula else None
        rows.append(made.row(method, far, probe(method, made.out)))
    title = f"Greedy answers to {len(questions)} questions that no sibling was trained on"
    return [
        Table("SmolLM2-135M-Instruct and two siblings (bfloat16)", MERGE_COLUMNS, rows),
        Table("Parameters and the tied head", ("model", "in transformers", "on disk", "lm_head on disk"), sizes),
        Table(title, ("model", "capitals", "end in Cheers!", "right", questions[0].text), asked),
    ]


def write_docs(page: Path, parts: Sequence[str]) -> None:
    """Puts the figures between the page's markers."""
    text = page.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text("\n\n".join([before, *parts, after]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=REPOSITORY / "scratch" / "real", help="packages and models")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "real-models.md", help="the page to update")
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    parts = []
    for title, text in refusals(original_berts(scratch), scratch):
        print(f"{title}\n{text}\n")
        parts.append(f"{title}\n\n```text\n{text}\n```")
    for make in (pickle_tables, bert_tables, smollm2_tables):
        for table in make(scratch):
            table.show()
            parts.append(table.markdown())
    write_docs(arguments.docs, parts)


if __name__ == "__main__":
    main()
