"""What a run would build, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_vr.training.resolved import Resolved, as_json

_KERNELS = {"cuDNN": "cuDNN's, fused", "flash-attn": "flash-attn's", "torch": "torch's"}


def print_resolved(
    trainings: Mapping[tuple[str, ...], Resolved],
    scoring: Resolved,
    console: Console | None = None,
) -> None:
    """A column for the trainings that are built alike, and one for scoring."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for stages in trainings:
        table.add_column(", ".join(stages), overflow="fold")
    table.add_column("score", overflow="fold")
    for name, told in _ROWS.items():
        table.add_row(name, *(told(built) for built in (*trainings.values(), scoring)))
    (console or Console()).print(table)


def _layers(built: Resolved) -> str:
    whose = "Transformer Engine" if built.layers == "te" else "plain torch"
    return f"{whose} ({built.why})"


def _products(built: Resolved) -> str:
    if built.fp8 is None:
        return built.dtype
    first, last = built.fp8["first_layers_bf16"], built.fp8["last_layers_bf16"]
    told = f"FP8 {built.fp8['recipe']}, {built.fp8['format']}"
    return told + (f"; first {first} and last {last} layers {built.dtype}" if first + last else "")


def _weights(built: Resolved) -> str:
    kept = "FP8 in the layers' matrices" if built.fp8 and built.fp8["params"] else built.dtype
    if built.optimizer is None:
        return kept
    return f"{kept}; main weights and AdamW's moments float32"


def _attention(built: Resolved) -> str:
    precision = "FP8" if built.fp8 and built.fp8["attention"] else built.dtype
    return f"{_KERNELS[built.attention]}, {precision}"


def _gradients(built: Resolved) -> str:
    if built.data_parallel is None:
        return "–"
    how = "added by the products" if built.fused_weight_gradients else "added by autograd"
    summed = "while" if built.data_parallel["overlap_grad_reduce"] else "after"
    return f"float32, {how}; summed over ranks {summed} the model computes"


def _optimizer(built: Resolved) -> str:
    if built.optimizer is None:
        return "–"
    told: Any = as_json(built.optimizer)
    return (
        f"AdamW, rate {told['lr']:g} → {told['min_lr']:g}, betas {told['adam_beta1']:g} and "
        f"{told['adam_beta2']:g}, decay {told['weight_decay']:g}, clipped at {told['clip_grad']:g}"
    )


def _log_probs(built: Resolved) -> str:
    chunk = built.log_prob_chunk
    positions = "chunks by memory" if chunk == "auto" else f"{chunk} positions at once"
    return f"reduced in {built.log_prob_reduction}, {positions}"


def _packs(built: Resolved) -> str:
    return (
        f"up to {built.micro_batch_tokens:,} tokens; sequences padded to a multiple of "
        f"{built.sequence_multiple}, packs of {built.pack_multiple:,}"
    )


def _model(built: Resolved) -> str:
    fields = built.transformer
    told = (
        f"{fields['num_layers']} layers of {fields['hidden_size']}, MLP "
        f"{fields['ffn_hidden_size']}, {fields['num_attention_heads']} heads of "
        f"{fields['kv_channels']}, {fields['num_query_groups']} key/value heads"
    )
    told += ", norms of queries and keys" if fields["qk_layernorm"] else ""
    return told + (", QKV bias" if fields["add_qkv_bias"] else "")


def _vocabulary(built: Resolved) -> str:
    rows, true = built.gpt["vocab_size"], built.gpt["true_vocab_size"]
    tied = built.gpt["share_embeddings_and_output_weights"]
    padded = "" if rows == true else f", padded to {rows:,}"
    return f"{true:,}{padded}; embedding and output {'one matrix' if tied else 'apart'}"


def _split(built: Resolved) -> str:
    fields = built.transformer
    chunks = fields["virtual_pipeline_model_parallel_size"]
    told = (
        f"tensor {fields['tensor_model_parallel_size']}"
        f"{' + sequence' if fields['sequence_parallel'] else ''}, context "
        f"{fields['context_parallel_size']}, pipeline {fields['pipeline_model_parallel_size']}"
    )
    return told + (f" × {chunks}" if chunks else "")


_ROWS: Final[Mapping[str, Callable[[Resolved], str]]] = {
    "model": _model,
    "vocabulary": _vocabulary,
    "split": _split,
    "layers": _layers,
    "layers' products": _products,
    "attention": _attention,
    "weights": _weights,
    "gradients": _gradients,
    "optimizer": _optimizer,
    "recompute": lambda built: built.recompute,
    "log-probs": _log_probs,
    "packs": _packs,
}
