"""FP8 as Megatron's configuration says it. Pure.

Only the layers' projections compute in FP8: queries, keys, values, attention's output, both of the
MLP. Norms, the router of experts, embedding and head do not, and attention only where it is asked.
"""

from __future__ import annotations

from typing import Any

from megatron_vr.config.fp8_settings import Fp8Settings


def fp8_fields(fp8: Fp8Settings | None) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig; none without FP8."""
    if fp8 is None:
        return {}
    fields: dict[str, Any] = {
        "fp8": fp8.number_format,
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.params,
        "fp8_dot_product_attention": fp8.attention,
    }
    if fp8.recipe == "delayed":
        fields["fp8_amax_history_len"] = fp8.amax_history
        fields["fp8_amax_compute_algo"] = fp8.amax_algorithm
    if fp8.first_layers_bf16 or fp8.last_layers_bf16:
        fields["first_last_layers_bf16"] = True
        fields["num_layers_at_start_in_bf16"] = fp8.first_layers_bf16
        fields["num_layers_at_end_in_bf16"] = fp8.last_layers_bf16
    return fields
