"""Tensors made of whole tensors of other shapes: low-rank factors of a difference, adapters merged into one."""
