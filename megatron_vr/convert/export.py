"""From a Megatron checkpoint to a Hugging Face folder, tensor by tensor, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_vr.convert.families import Weight
from megatron_vr.convert.hf_writer import (
    SHARD_BYTES,
    copy_companions,
    new_folder,
    set_config,
    write_tensors,
)
from megatron_vr.convert.maps import (
    Index,
    parameters,
    source_shapes,
    split_layer,
    weight_map,
)
from megatron_vr.convert.slices import TensorCheckpoint
from megatron_vr.convert.transforms import to_hf
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_hf(
    checkpoint_folder: str | Path,
    architecture: Architecture,
    source_folder: str | Path,
    destination: str | Path,
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model of a torch_dist checkpoint, saved from any layout, as `destination`.

    `source_folder` is the Hugging Face folder the run started from; its configuration, tokenizer,
    chat template and licence are copied. `dtype` is float32, bfloat16 or float16. The destination
    appears when it is complete. Raises CheckpointError when it exists and is not empty, when the
    checkpoint is not this model's, or when `source_folder` has another architecture.
    """
    if dtype not in DTYPES:
        raise SettingsError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
    source = Path(source_folder)
    if read_architecture(source) != architecture:
        raise CheckpointError(f"{source} is of another architecture than {checkpoint_folder}.")
    checkpoint = TensorCheckpoint(checkpoint_folder)
    _check_keys(checkpoint, architecture)
    with new_folder(destination) as folder:
        copy_companions(source, folder)
        # Both names: Transformers 5 writes `dtype`, older readers know `torch_dtype` only.
        set_config(folder, dtype=dtype, torch_dtype=dtype)
        write_tensors(folder, _hf_tensors(checkpoint, architecture, DTYPES[dtype]), shard_bytes)


def _check_keys(checkpoint: TensorCheckpoint, architecture: Architecture) -> None:
    rows = weight_map(architecture)
    keys = checkpoint.keys()
    models = {key for key in keys if key.startswith(("embedding.", "decoder.", "output_layer."))}
    unknown = {key for key in models if split_layer(key)[0] not in rows}
    missing = set(rows) - {split_layer(key)[0] for key in models}
    for verb, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise CheckpointError(
                f"{checkpoint.folder} {verb} parameter {min(names)} for a "
                f"{architecture.family} model."
            )


def _hf_tensors(
    checkpoint: TensorCheckpoint, architecture: Architecture, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for weight, index in parameters(architecture):
        parameter = _parameter(checkpoint, weight, index)
        tensors = to_hf(weight.transform, parameter, architecture)
        shapes = source_shapes(weight, index, architecture)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{checkpoint.folder}: {weight.megatron} makes {name} of shape "
                    f"{tuple(tensor.shape)}, but the model asks for {shape}."
                )
            yield name, tensor.to(dtype)


def _parameter(checkpoint: TensorCheckpoint, weight: Weight, index: Index) -> Tensor:
    if weight.megatron in checkpoint:
        return checkpoint.entry(weight.megatron, index)
    # Megatron can also store each layer under a key of its own.
    layer, *expert = index
    key = weight.megatron.replace("layers.", f"layers.{layer}.", 1)
    return checkpoint.entry(key, tuple(expert))
