"""The options of `cuvee lora extract`, told once; mergekit-extract-lora's keep their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cuvee.errors import CuveeError
from cuvee.options import option, parse_size

DEFAULT_RANK = 128


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract, and how closely."""

    max_rank: int = option(
        0, f"Largest rank of a module; by default {DEFAULT_RANK}, without bound if --energy or --max-bytes choose.",
        "--rank", metavar="N",
    )  # fmt: skip
    energy: float = option(
        0.0, "Give each module the smallest rank that keeps this share of its squared change (0.95).", metavar="SHARE"
    )
    max_bytes: str | None = option(
        None, "Give the modules the ranks that lose least in an adapter of this size.", metavar="SIZE"
    )
    sv_epsilon: float = option(0.0, "Leave out singular values of this size or smaller.", metavar="NUMBER")
    distribute_scale: bool = option(True, "Share the singular values between A and B; else A takes them.")
    embed_lora: bool = option(False, "Decompose embeddings and head too, instead of saving them whole.")
    save_module: tuple[str, ...] = option((), "Save modules whose name ends in this whole.", metavar="NAME")
    exclude_regex: tuple[str, ...] = option((), "Leave out modules whose name matches.", "-e", metavar="REGEX")
    include_regex: tuple[str, ...] = option((), "Take only modules whose name matches.", "-i", metavar="REGEX")
    skip_undecomposable: bool = option(False, "Leave out what is no matrix (norms, biases, convolutions).")
    exact: bool = option(False, "Decompose in full instead of by randomised iteration.")
    dtype: str = option("float32", "Write float32, bfloat16 or float16.", metavar="DTYPE")

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.max_rank < 0:
            raise CuveeError(f"a rank of {self.max_rank} is impossible", expected="--max-rank of 1 or more")
        if not 0.0 <= self.energy <= 1.0:
            raise CuveeError("--energy is a share of the change", expected="0 to 1", found=f"{self.energy:g}")
        if not self.sv_epsilon >= 0.0:
            raise CuveeError("--sv-epsilon cannot be negative", found=f"{self.sv_epsilon:g}")
        if self.energy and self.max_bytes:
            raise CuveeError("--energy and --max-bytes both choose the ranks", fix="give one of them")
        if self.max_bytes is not None:
            parse_size(self.max_bytes)
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise CuveeError(f"an adapter cannot be written in {self.dtype!r}", expected="float32, bfloat16 or float16")
        for pattern in (*self.exclude_regex, *self.include_regex):
            try:
                re.compile(pattern)
            except re.error as error:
                raise CuveeError(f"{pattern!r} is not a regular expression", found=str(error)) from None

    @property
    def largest_rank(self) -> int | None:
        """The bound on every module's rank; None if there is none."""
        return self.max_rank or (None if self.energy or self.max_bytes else DEFAULT_RANK)

    @property
    def code(self) -> str:
        """The safetensors code of `dtype`."""
        return {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[self.dtype]
