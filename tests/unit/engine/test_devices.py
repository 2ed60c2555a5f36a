"""Which devices a `--device` value means, where there is no torch."""

import sys

import pytest

from cuvee.engine.devices import NumpyBackend, backends_for
from cuvee.errors import CuveeError


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("devices", ["cpu", "auto"])
def test_the_best_there_is_without_torch_is_the_cpu(devices):
    assert backends_for(devices) == [NumpyBackend()]


@pytest.mark.parametrize("devices", ["cuda", "cuda:0,cuda:1", "cuda:all", "mps", "xpu", "torch:cpu"])
def test_accelerators_need_torch(devices):
    with pytest.raises(CuveeError, match="needs torch"):
        backends_for(devices)


@pytest.mark.parametrize("devices", ["gpu", "", "cuda:x", "cuda:-1", "cuda,gpu", "cuda:0,cpu"])
def test_a_device_that_does_not_exist_is_told_first(devices):
    with pytest.raises(CuveeError, match="unknown device"):
        backends_for(devices)
