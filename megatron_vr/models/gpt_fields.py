"""What of Megatron's GPTModel follows from a model's shape and its layout. Pure."""

from __future__ import annotations

from typing import Any

from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout


def gpt_fields(architecture: Architecture, layout: Layout) -> dict[str, Any]:
    """Its arguments beside configuration and layers, the same on every pipeline stage.

    The vocabulary is padded to rows that the tensor ranks share evenly; `true_vocab_size` is how
    many of them are tokens.
    """
    return {
        "vocab_size": layout.padded_vocabulary(architecture.vocab_size),
        "true_vocab_size": architecture.vocab_size,
        "max_sequence_length": architecture.max_positions,
        "share_embeddings_and_output_weights": architecture.tied,
        "position_embedding_type": "rope",
        "rotary_base": architecture.rope_theta,
        "rope_scaling": architecture.rope_factor is not None,
        "rope_scaling_factor": architecture.rope_factor or 1.0,
    }
