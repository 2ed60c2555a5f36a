"""Every option of a merge, told once: the command line, mergekit's aliases and the Python API all read it here."""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields
from numbers import Integral
from pathlib import Path, PurePath
from typing import Any

from cuvee.errors import CuveeError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "b": 1000**3, "g": 1000**3, "t": 1000**4}
_BINARY = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
DEFAULT_SEED = 0


def option(default: Any, text: str, *flags: str, metavar: str | None = None, legacy: bool = False) -> Any:
    """A dataclass field with its help text, extra flags (`-j`) and whether it only exists for old command lines."""
    return field(default=default, metadata={"help": text, "flags": flags, "metavar": metavar, "legacy": legacy})


def parse_size(text: str | int) -> int:
    """Bytes meant by `5B`, `500M`, `2GB` (units of 1000, as mergekit counts) or `2GiB` (of 1024).

    Raises:
        CuveeError: if it is not a size.

    """
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]*)\s*", str(text)[:60].lower(), re.ASCII)
    unit = match[2] if match else "?"
    scale = _BINARY.get(unit) or _UNITS.get(unit) or _UNITS.get(unit.removesuffix("b"))
    if match is None or scale is None or (size := int(float(match[1]) * scale)) <= 0:
        raise CuveeError(
            f"{str(text)[:60]!r} is not a size", expected="a number with a unit, such as 5B, 500M, 2GB or 1GiB"
        )
    return size


# The parts of the fields' types -> what they are to Python, and in words.
_KINDS: dict[str, tuple[type, str]] = {
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "str": (str, "text"),
    "Path": (PurePath, "a path"),
    "None": (type(None), "None"),
}


def _refuse_other_types(item: Field[Any], value: object) -> None:
    """Raises a CuveeError if `value` is not of the type that the field says; the command line gives no others."""
    kinds = [_KINDS[part] for part in str(item.type).split(" | ")]
    if isinstance(value, tuple(kind for kind, _ in kinds)) and (item.type == "bool" or not isinstance(value, bool)):
        return
    raise CuveeError(
        f"the option {item.name} cannot be of type {type(value).__name__}",
        expected=" or ".join(words for _, words in kinds),
        found=repr(value)[:60],
        option=item.name,
    )


@dataclass(frozen=True)
class MergeOptions:
    """How to merge; what to merge is the recipe's affair."""

    overwrite: bool = option(False, "Replace OUT if it exists; the old one stays until the new one is complete.")
    fresh: bool = option(False, "Start over where an earlier run of the same merge could be gone on with.")
    strict: bool = option(False, "Treat recipe warnings, such as unknown keys, as errors.")
    device: str | None = option(
        None,
        "Where arithmetic runs: cpu (NumPy; the default), cuda, cuda:1, cuda:0,cuda:1, mps, xpu, auto, or torch:cpu.",
        metavar="DEV",
    )
    cuda: bool = option(False, "Short for --device cuda.")
    multi_gpu: bool = option(False, "Use all CUDA devices, with or without --device cuda.")
    threads: int = option(0, "Worker threads; 0 means one a core, up to 8.", "-j", "--num-threads", metavar="N")
    processes: int = option(0, "Worker processes that share the threads; 0 means as many as pay.", metavar="N")
    memory: str | int = option("1GiB", "Working memory to stay within.", metavar="SIZE")
    out_shard_size: str | int = option("5B", "Largest size of an output file.", metavar="SIZE")
    random_seed: int = option(DEFAULT_SEED, "Seed for methods that draw random masks.", metavar="N")
    copy_tokenizer: bool = option(True, "Write the tokenizer's files beside the weights.")
    write_model_card: bool = option(True, "Write README.md and mergekit_config.yml.")
    safe_serialization: bool = option(True, "Write safetensors; --no-safe-serialization writes PyTorch .bin files.")
    trust_remote_code: bool = option(
        False, "Run merge methods from Python files that recipes name; copy the Python files beside the base model."
    )
    allow_crimes: bool = option(False, "Allow models of different architectures.")
    allow_nonfinite: bool = option(False, "Go on when weights hold NaN or infinities.")
    transformers_cache: str | Path | None = option(  # noqa: RUF009 - a field, as all others
        None, "Folder for downloaded models.", metavar="PATH"
    )
    lora_merge_cache: str | None = option(None, "Accepted; without effect.", metavar="PATH", legacy=True)
    lora_merge_dtype: str | None = option(None, "Accepted; without effect.", metavar="DTYPE", legacy=True)
    unsafe_truncate_embeddings: bool = option(
        False, "Cut embeddings of different lengths to the shortest, whatever their tokens mean."
    )
    gpu_rich: bool = option(False, "Short for --cuda --multi-gpu.", legacy=True)
    low_cpu_memory: bool = option(False, "Accepted; memory is always low.", legacy=True)
    read_to_gpu: bool = option(False, "Accepted; without effect.", legacy=True)
    lazy_unpickle: bool = option(False, "Accepted; reading is always lazy.", legacy=True)
    clone_tensors: bool = option(False, "Accepted; without effect.", legacy=True)
    async_write: bool = option(False, "Accepted; writing is always asynchronous.", legacy=True)
    write_threads: int = option(0, "Accepted; without effect.", metavar="N", legacy=True)

    def __post_init__(self) -> None:
        """Refuses values of other types, devices that contradict each other, and numbers that mean nothing."""
        for item in fields(self):
            _refuse_other_types(item, getattr(self, item.name))
        self._refuse_other_devices()
        if self.threads < 0 or self.processes < 0:
            raise CuveeError(
                "there cannot be so few workers",
                expected="threads of 0 (one a core) or more, processes of 0 (as many as pay) or more",
                found=f"threads {self.threads}, processes {self.processes}",
            )

    def _refuse_other_devices(self) -> None:
        """In mergekit the short forms mean accelerators whatever --device says; here neither wins unseen."""
        short = "multi_gpu" if self.multi_gpu else "gpu_rich" if self.gpu_rich else "cuda" if self.cuda else None
        if short is None or self.device in (None, "auto", "cuda", "cuda:all"):
            return
        if short != "cuda" or not self.device.startswith("cuda"):
            flag = "--" + short.replace("_", "-")
            raise CuveeError(
                f"--device {self.device[:40]} contradicts {flag}",
                expected=f"--device cuda, auto or none beside {flag}",
                fix=f"leave out one of them: --device {self.device[:40]}, or {flag}",
                option="device",
            )

    @property
    def devices(self) -> str:
        """The device string after the short forms."""
        if self.multi_gpu or self.gpu_rich:
            return "cuda:all"
        return self.device or ("cuda" if self.cuda else "cpu")

    @property
    def meaningless(self) -> tuple[str, ...]:
        """Options given that no longer mean anything, as typed."""
        names = [item.name for item in fields(self) if item.metadata["help"].startswith("Accepted")]
        return tuple("--" + name.replace("_", "-") for name in names if getattr(self, name))
