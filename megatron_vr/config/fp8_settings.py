"""Training the layers' matrix products in 8-bit floating point."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from megatron_vr.config.frozen import Count, Frozen, Whole

Recipe = Literal["tensorwise", "delayed", "blockwise", "mxfp8"]
Format = Literal["e4m3", "hybrid"]

# Places of a pack on a rank: what the kernels take, and whole blocks of scales.
ALIGN: Final[dict[Recipe, int]] = {"tensorwise": 16, "delayed": 16, "blockwise": 128, "mxfp8": 32}


class Fp8Settings(Frozen):
    """Matrix products of the layers in FP8, in trainings only: scoring is in `model.dtype`, and so
    are embedding and head."""

    recipe: Recipe = Field(
        description="where a scale comes from. tensorwise: one for a tensor, from the tensor; "
        "delayed: one for a tensor, from the steps before; blockwise: one for a block of 128, "
        "which wants CUDA 12.9; mxfp8: Blackwell's, refused here"
    )
    format: Format | None = Field(
        None,
        description="e4m3: everything; hybrid: gradients in e5m2. null: hybrid for one scale a "
        "tensor, e4m3 for blockwise",
    )
    first_layers_bf16: Whole = Field(0, description="layers at the start that stay in bfloat16")
    last_layers_bf16: Whole = Field(0, description="layers at the end that stay in bfloat16")
    params: bool = Field(
        False,
        description="keep the layers' matrices in FP8 alone, and gather them in FP8 (float32 main "
        "weights stay); needs parallel.overlap",
    )
    attention: bool = Field(
        False, description="attention in FP8 too; no GPU up to Hopper takes packs in it"
    )
    amax_history: Count = Field(
        1024, description="delayed: micro-batches whose largest values count"
    )
    amax_algorithm: Literal["max", "most_recent"] = Field(
        "max", description="delayed: which of them"
    )

    @property
    def number_format(self) -> Format:
        """The format, the recipe's own where none is given."""
        return self.format or ("e4m3" if self.recipe == "blockwise" else "hybrid")
