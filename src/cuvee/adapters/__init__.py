"""Adapters as PEFT writes them: config and tensors read and named, apart from any base model."""
