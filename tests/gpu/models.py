"""Small random models: by Transformers as the reference, by Megatron as what is tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.spec_choice import Spec
from megatron_vr.convert.live import live_tensors
from megatron_vr.convert.load import load_hf
from megatron_vr.models.architecture import read_architecture
from megatron_vr.models.gpt import build_model
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.micro_batch import MicroBatch, TokenTable
from megatron_vr.training.places import PackShape
from megatron_vr.training.update import run_model
from tests.gpu.place import Place
from tests.models.reference import label_log_probs, tiny_model

# Odd; all other widths are what FP8's kernels take, blocks of 128 included.
VOCABULARY = 515
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
# What of it a rehearsal has smaller.
SMALL = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.12}
# One token and few tokens beside longer ones; together a multiple of nothing.
LENGTHS = (60, 3, 1, 5, 4, 17, 2, 101)
# bfloat16 has 8 bits of mantissa: half the distance of neighbours, relative to them.
HALF_SPACING = 2.0**-9


def write_model(
    place: Place, folder: Path, family: str = "qwen3", tied: bool = False, **changes: Any
) -> Path:
    """A Hugging Face folder of random bfloat16 weights, norms and biases included."""
    small = SMALL if place.rehearsing else {}
    shape = SHAPE | small | ({"head_dim": 64} if family == "qwen3" else {}) | changes
    tiny_model(family, tied, **shape).bfloat16().save_pretrained(folder)
    return folder


def reference(folder: Path, place: Place, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' model, by its plainest attention; rotary frequencies stay in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, "only a tied weight is not stored"
    return model.to(place.device).eval()


def megatron_model(
    folder: Path,
    place: Place,
    *,
    spec: Spec | None = None,
    recompute: Any = "none",
    fp8: Fp8Settings | None = None,
) -> Any:
    """The same model in bfloat16, of the layers under test or of `spec`."""
    architecture = read_architecture(folder)
    (model,) = build_model(
        architecture,
        Layout(),
        spec=spec or place.spec,
        dtype="bfloat16",
        recompute=recompute,
        log_prob_chunk=64,
        fp8=place.fp8(fp8),
    )
    load_hf([model], folder, architecture)
    return model


def sequences(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Random tokens, the same at each call."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


def pack(ids: Sequence[Tensor], place: Place, align: int = 1) -> MicroBatch:
    """One pack in which every token but a sequence's first is a target."""
    lengths = np.array([len(sequence) for sequence in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_target = np.ones(offsets[-1], dtype=np.bool_)
    is_target[offsets[:-1]] = False
    table = TokenTable(torch.cat(list(ids)).numpy(), is_target, offsets)
    rows = np.arange(len(ids))
    return table.micro_batch(rows, PackShape(align=align), torch.device(place.device))


def packed(model: Any, ids: Sequence[Tensor], place: Place, align: int = 1) -> Tensor:
    """log p [targets] of every token but the first of each sequence, through one pack."""
    return run_model(model, pack(ids, place, align))


def one_by_one(model: Any, ids: Sequence[Tensor]) -> Tensor:
    """The same by Transformers, sequence by sequence."""
    device = model.device
    return torch.cat([label_log_probs(model, one.to(device)) for one in ids if len(one) > 1])


def backward(log_probs: Tensor) -> None:
    """Of a sum of log-probs in which each counts differently."""
    (torch.linspace(-1, 1, len(log_probs), device=log_probs.device) @ log_probs).backward()


@torch.no_grad()
def gradients(model: Any, folder: Path) -> dict[str, Tensor]:
    """Of a Megatron model's parameters, under Transformers' names; overwrites the weights."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)
    return dict(live_tensors([model], read_architecture(folder)))


def own_gradients(model: Any) -> dict[str, Tensor]:
    """Of a Transformers model's parameters."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of `expected`."""
    off = (found.double() - expected.double()).norm() / expected.double().norm()
    return float(off)
