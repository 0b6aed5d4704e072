"""What of the GPU path is installed here: versions, kernels, the device. Found at run time."""

from __future__ import annotations

from dataclasses import dataclass

APEX_KERNELS = {
    "amp_C": "a fused optimizer, gradient norms and clipping",
    "fused_weight_gradient_mlp_cuda": "weight gradients summed into float32 by the product itself",
    "fused_layer_norm_cuda": "fused norms outside of Transformer Engine",
}


@dataclass(frozen=True)
class Parts:
    """Versions as text, None where a part is missing.

    `capability` is the device's, as (9, 0) of Hopper, None without a GPU; `cuda` what torch was
    built for; `cudnn` as Transformer Engine finds it; `apex` the kernels of NVIDIA's apex by
    module; `attention_switches` the NVTE_*_ATTN variables of the environment.
    """

    megatron: str
    torch: str
    transformer_engine: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    flash_attn: str | None = None
    capability: tuple[int, int] | None = None
    apex: frozenset[str] = frozenset()
    attention_switches: tuple[tuple[str, str], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device to compute on."""
        return self.capability is not None


def find_parts() -> Parts:
    """Those of this host and process."""
    raise NotImplementedError
