"""Variational reasoning for language models, at scale, on Megatron-Core."""

__version__ = "0.1.0"
