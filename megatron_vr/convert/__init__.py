"""Hugging Face weights to Megatron parameters and back, by tables of names."""
