"""Where arithmetic runs: NumPy on the CPU, torch on accelerators. The method code is the same; only arrays differ."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.errors import CuveeError
from cuvee.numerics.block import Array
from cuvee.tensors.dtypes import name_of, narrow, numpy_dtype

_DEVICE = re.compile(r"(cuda|mps|xpu)(:\d{1,4})?|cuda:all|torch:cpu", re.ASCII)


class Backend(ABC):
    """Moves arrays between host memory and where methods compute."""

    block_elements: int
    """Elements of a block that suit the device."""
    working_memory: int
    """Bytes that all blocks together may take, unless the budget is smaller."""

    @abstractmethod
    def load(self, array: np.ndarray[Any, Any]) -> Array:
        """A fresh host array as an array of this backend, which may take it over."""

    @abstractmethod
    def store(self, array: Array, dtype: str) -> np.ndarray[Any, Any]:
        """An array of this backend in host memory, rounded once to `dtype` (a safetensors code; to nearest even)."""

    def lane(self) -> AbstractContextManager[Any]:
        """What a worker thread holds while it computes."""
        return nullcontext()


@dataclass(frozen=True)
class NumpyBackend(Backend):
    """The CPU."""

    block_elements: int = 1 << 17
    working_memory: int = 128 << 20

    def load(self, array: np.ndarray[Any, Any]) -> Array:
        """The array itself."""
        return array

    def store(self, array: Array, dtype: str) -> np.ndarray[Any, Any]:
        """The array, rounded."""
        return narrow(array, dtype)


@dataclass(frozen=True)
class TorchBackend(Backend):
    """An accelerator, or torch on the CPU; `device` as torch names it."""

    device: str
    block_elements: int = 1 << 24
    working_memory: int = 1 << 40

    def load(self, array: np.ndarray[Any, Any]) -> Array:
        """The array on the device; float64 where the device lacks it is refused by torch."""
        import torch

        tensor = torch.from_numpy(array)
        if self.device.startswith("cuda"):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def store(self, array: Array, dtype: str) -> np.ndarray[Any, Any]:
        """The array, rounded on the device and brought back."""
        import torch

        rounded = array.to(getattr(torch, name_of(dtype))).cpu()
        if dtype == "BF16":  # torch gives NumPy no bfloat16: pass the bits
            rounded, bits = rounded.view(torch.int16), numpy_dtype(dtype)
            return np.asarray(rounded.numpy().view(bits))
        host: np.ndarray[Any, Any] = rounded.numpy()
        return host

    def lane(self) -> AbstractContextManager[Any]:
        """On CUDA a stream of its own for each thread, so that one thread's copies overlap another's arithmetic."""
        import torch

        if not self.device.startswith("cuda"):
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-any-return]


def backends_for(devices: str) -> list[Backend]:
    """One backend for each device of a `--device` value.

    Raises:
        CuveeError: if a device is not known or not there, or torch is missing.

    """
    if devices == "cpu":
        return [NumpyBackend()]
    if devices == "auto":
        return _best()
    names = [name.strip() for name in devices.split(",")]
    if unknown := [name for name in names if not _DEVICE.fullmatch(name)]:
        raise CuveeError(
            f"unknown device {unknown[0]!r}", expected="cpu, cuda, cuda:1, cuda:0,cuda:1, mps, xpu, auto or torch:cpu"
        )
    torch = _torch(devices)
    if devices == "cuda:all":
        names = [f"cuda:{i}" for i in range(_count(torch, "cuda"))] or ["cuda"]
    return [_backend(torch, name) for name in names]


def _best() -> list[Backend]:
    """All accelerators of the best kind that is there; the CPU where there is none, or no torch to reach it."""
    try:
        torch = _torch("auto")
    except CuveeError:
        return backends_for("cpu")
    kind = next((kind for kind in ("cuda", "xpu", "mps") if _count(torch, kind)), "cpu")
    return backends_for("cuda:all" if kind == "cuda" else kind)


def _backend(torch: Any, name: str) -> Backend:
    if name == "torch:cpu":
        return TorchBackend("cpu", 1 << 20)
    kind, _, index = name.partition(":")
    if int(index or 0) >= _count(torch, kind):
        found = f"{_count(torch, kind)} {kind} devices"
        raise CuveeError(
            f"device {name!r} is not there", found=found, fix="use --device cpu: most merges are as fast there"
        )
    return TorchBackend(name)


def _count(torch: Any, kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0


def _torch(devices: str) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise CuveeError(
            f"--device {devices} needs torch, which is not installed",
            fix="pip install 'cuvee[torch]', or leave --device out: NumPy on the CPU is the default",
        ) from None
    return torch
