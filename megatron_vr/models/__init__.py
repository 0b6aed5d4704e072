"""Megatron GPT models of Hugging Face architectures, with a log-prob head instead of logits."""
