"""Merge methods: pure arithmetic that turns K tensors into one. Knows no files, devices, threads or tensor names."""
