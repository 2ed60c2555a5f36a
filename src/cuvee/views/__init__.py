"""Checkpoints as a merge wants to see them: opened, and every difference in how they are stored made to vanish.

A view is a checkpoint whose tensors are other source expressions; planning and the engine never know.
"""
