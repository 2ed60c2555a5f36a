"""Tells a place that holds an adapter from one that holds a model, by the names of its files alone."""

from __future__ import annotations

from cuvee.tensors.location import Location

CONFIG = "adapter_config.json"


def is_adapter(location: Location) -> bool:
    """Whether there is an adapter, and no whole model beside it, at `location`."""
    names = location.sizes()
    others = (name for name in names if "/" not in name and not name.startswith("adapter_"))
    return CONFIG in names and not any(name.endswith(".safetensors") or name == "config.json" for name in others)
