"""Adapters out: extracted from fine-tunes, and merged with each other, as plans for the ordinary engine."""
