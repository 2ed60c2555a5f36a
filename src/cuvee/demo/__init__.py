"""The demo: a tiny Llama family that ships with the package, the skills it is tested on, and `cuvee demo`.

`family` says where the checkpoints lie, `llama` runs them in NumPy, `skills` asks the questions, `run` merges
and prints. This room merges only through `cuvee.api`, like any user, and knows nothing of how merging is
done. How the family was trained is told by `examples/train_demo_family.py`.
"""

from __future__ import annotations

from pathlib import Path


def family() -> dict[str, Path]:
    """The folders of the shipped checkpoints by name: `base` first, then one expert for each skill."""
    folder = Path(__file__).parent / "family"
    return {name: folder / name for name in ("base", "reverse", "sort", "add")}
