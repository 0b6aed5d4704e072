"""Write the files of an FP8 folder: tensors, scales, and what tells an engine how to read them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_vr.convert.fp8_reload import to_fp8
from megatron_vr.convert.fp8_scales import Scales, engine_description
from megatron_vr.convert.hf_reader import INDEX, SINGLE, HFWeights
from megatron_vr.convert.hf_writer import SHARD_BYTES, copy_companions
from megatron_vr.convert.maps import expected_tensors
from megatron_vr.models.architecture import Architecture


def write_fp8(
    folder: Path,
    weights: HFWeights,
    architecture: Architecture,
    scales: Mapping[str, Scales],
    described: dict[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model of `weights` into `folder`, the matrices named in `scales` as FP8.

    Such a matrix `NAME.weight` becomes float8_e4m3fn of the same shape, with `NAME.weight_scale`
    and `NAME.input_scale`, float32 scalars. Other tensors are written as they are, and a tied
    model's second copy of its embedding is left out. Files beside the weights are the source's,
    but for `quantization_config` in `config.json`; `hf_quant_config.json` is `described`.
    """
    copy_companions(weights.folder, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Engines look here first, and older ones in the other file.
    config["quantization_config"] = engine_description(described)
    _write_json(path, config)
    _write_json(folder / "hf_quant_config.json", described)
    _write_shards(folder, _fp8_tensors(weights, architecture, scales), shard_bytes)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _fp8_tensors(
    weights: HFWeights, architecture: Architecture, scales: Mapping[str, Scales]
) -> Iterator[tuple[str, Tensor]]:
    for name in expected_tensors(architecture):
        layer = name.removesuffix(".weight")
        if layer in scales:
            weight_scale = torch.tensor(scales[layer].weight)
            yield name, to_fp8(weights.tensor(name), weight_scale)
            yield f"{layer}.weight_scale", weight_scale
            yield f"{layer}.input_scale", torch.tensor(scales[layer].input)
        else:
            yield name, weights.tensor(name)
        weights.release()


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """One file, or shards of at most `shard_bytes` (or one tensor) with an index.

    One shard is in memory at a time.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    sizes: list[int] = []

    def flush() -> None:
        save_file(pending, folder / _unnumbered(len(shards)), metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    size = 0
    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        pending[name] = tensor.contiguous()
        size += tensor.nbytes
        sizes.append(tensor.nbytes)
    flush()
    if len(shards) == 1:
        os.replace(folder / _unnumbered(0), folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        # The count in the name is known now only.
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / _unnumbered(number), folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    _write_json(folder / INDEX, index)


def _unnumbered(number: int) -> str:
    return f"shard-{number}.safetensors"
