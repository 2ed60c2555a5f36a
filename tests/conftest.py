"""Fixtures for all tests: tiny checkpoints, made once a session, and an environment without surprises."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from support.tiny_models import BFLOAT16, Family, Maker, make_architecture, make_llama


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes the family of an architecture, each once."""

    @cache
    def make(name: str) -> Family:
        return make_architecture(name, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Four tiny Llamas in float32, made without torch. Not to be changed by tests."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_bf16(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The same in bfloat16."""
    return make_llama(tmp_path_factory.mktemp("llama-bf16"), dtype=BFLOAT16)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, a home and caches of its own, and no Hub to be reached by accident."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return work
