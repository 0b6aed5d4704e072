"""An FP8 release of a Hugging Face folder, calibrated by nvidia-modelopt and read back before it
appears.

The layout is that of modelopt's own exporter (quant_method `modelopt`). The tensors are written
here, because that exporter divides bfloat16 weights in bfloat16, and then rounds a second time.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_vr.convert.calibration import (
    Ids,
    encode,
    open_tokenizer,
    own_continuations,
    read_texts,
)
from megatron_vr.convert.fp8_reload import (
    LogitDifference,
    check_reload,
    difference,
    load_fp8,
    logits_of,
)
from megatron_vr.convert.fp8_scales import calibrate, description, require_modelopt
from megatron_vr.convert.fp8_writer import write_fp8
from megatron_vr.convert.hf_reader import HFWeights, check_tensors
from megatron_vr.convert.hf_writer import new_folder
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import read_architecture

FORMATS = ("fp8",)

_COMPARED_SEQUENCES, _COMPARED_TOKENS = 4, 128


@dataclass(frozen=True)
class Quantised:
    """What was written, and how it computes.

    `matrices` are FP8 now. `reload` is what was read back from the disk against the fake-quantised
    model in memory, `unquantised` the same against the source, over `compared_tokens` tokens;
    `held_out` says whether those took no part in calibration. Sizes are those of the weight files.
    """

    format: str
    matrices: int
    calibration_sequences: int
    calibration_tokens: int
    compared_tokens: int
    held_out: bool
    reload: LogitDifference
    unquantised: LogitDifference
    bytes_before: int
    bytes_after: int


def quantise(
    source: Path,
    destination: Path,
    *,
    format: str,
    calibration: Path | None,
    max_tokens: int = 1024,
    samples: int = 64,
    seed: int = 0,
) -> Quantised:
    """Write the dense model in `source` as `destination`, its decoder's matrices in `format`.

    fp8: float8_e4m3fn weights and static input scales, one of each per matrix, the weight scale
    shared by what engines join (q, k, v; gate, up). Embeddings, head, norms and biases are the
    source's bytes, and so are the files beside the weights; `config.json` gains
    `quantization_config`. Input scales are measured on at most `samples` texts of `calibration` (a
    JSONL file; see `read_texts`) cut to `max_tokens`, or without one on the model's own
    continuations (`own_continuations`), drawn with `seed`. The first GPU is used if there is one.

    The destination appears when what was written has been read back and computes what was
    quantised (`check_reload`). Raises SettingsError for an unknown format, a folder without
    tokenizer or a missing modelopt, DataError for a calibration file that cannot be used, and
    CheckpointError for a model that is not supported or a destination that exists.
    """
    _check_settings(format, max_tokens, samples)
    architecture = read_architecture(source)
    if architecture.experts is not None:
        raise CheckpointError(f"{source} is a mixture of experts; only dense models are quantised.")
    tokenizer = open_tokenizer(source)
    texts = None if calibration is None else read_texts(calibration, samples, seed)
    require_modelopt()
    limit = min(max_tokens, architecture.max_positions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = HFWeights(source)
    check_tensors(weights, architecture)
    dtype = _matrix_dtype(weights)
    with new_folder(destination) as folder:
        model = _load(source, dtype, device)
        if texts is None:
            sequences = own_continuations(model, tokenizer, limit=limit, samples=samples, seed=seed)
        else:
            sequences = encode(texts, tokenizer, limit, architecture.vocab_size)
        compared, calibrated = _hold_out(sequences)
        unquantised = _finite(logits_of(model, compared), source)
        scales = calibrate(model, calibrated)
        fake, described = logits_of(model, compared), description(model)
        del model
        gc.collect()  # Modules refer to each other; two models need not fit.
        write_fp8(folder, weights, architecture, scales, described)
        reloaded = logits_of(load_fp8(folder, dtype, device), compared)
        drift = check_reload(reloaded, fake, unquantised)
        written = _size(HFWeights(folder))
    return Quantised(
        format=format,
        matrices=len(scales),
        calibration_sequences=len(calibrated),
        calibration_tokens=sum(map(len, calibrated)),
        compared_tokens=sum(map(len, compared)),
        held_out=len(calibrated) < len(sequences),
        reload=drift,
        unquantised=difference(reloaded, unquantised),
        bytes_before=_size(weights),
        bytes_after=written,
    )


def _check_settings(format: str, max_tokens: int, samples: int) -> None:
    if format not in FORMATS:
        raise SettingsError(f"format={format!r} is unknown; use one of: {', '.join(FORMATS)}.")
    for name, value in (("max_tokens", max_tokens), ("samples", samples)):
        if value < 1:
            raise SettingsError(f"{name}={value} must be at least 1.")


def _matrix_dtype(weights: HFWeights) -> torch.dtype:
    names = sorted(name for name in weights.names() if name.endswith("_proj.weight"))
    dtypes = {weights.dtype(name) for name in names}
    if len(dtypes) != 1:
        raise CheckpointError(
            f"{weights.folder} stores its matrices as {', '.join(sorted(map(str, dtypes)))}; "
            "give a folder with one precision throughout."
        )
    return dtypes.pop()


def _load(source: Path, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return model.to(device).eval()


def _hold_out(sequences: Sequence[Ids]) -> tuple[list[Ids], list[Ids]]:
    """What is compared, and what is calibrated on: distinct from eight sequences on."""
    held = min(_COMPARED_SEQUENCES, len(sequences) // 8)
    compared = sequences[:held] or sequences[:_COMPARED_SEQUENCES]
    return [ids[:_COMPARED_TOKENS] for ids in compared], list(sequences[held:])


def _finite(logits: list[Tensor], source: Path) -> list[Tensor]:
    if not all(bool(part.isfinite().all()) for part in logits):
        raise CheckpointError(f"{source} gives logits that are not finite; its weights are broken.")
    return logits


def _size(weights: HFWeights) -> int:
    return sum(path.stat().st_size for path in weights.files)
