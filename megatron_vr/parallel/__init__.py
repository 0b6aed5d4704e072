"""Processes, process groups and what Megatron needs to run without CUDA."""
