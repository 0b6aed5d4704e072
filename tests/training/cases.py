"""The trainings whose results must not depend on how they are split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_vr.parallel.layout import Layout


@dataclass(frozen=True)
class Case:
    """One training that is compared with its reference."""

    name: str
    model: str
    layout: Layout = field(default_factory=Layout)
    changes: dict[str, Any] = field(default_factory=dict)
    bucket_size: int | None = None


ONE_RANK = [
    Case("one pack a step", "qwen3-untied", changes={"micro_batch_tokens": 200}),
    Case("several packs a step", "qwen3-untied", changes={"micro_batch_tokens": 35}),
    Case("tied embeddings", "qwen2-tied"),
]
BF16: dict[str, Any] = {"dtype": "bfloat16"}
OVERLAP: dict[str, Any] = {"overlap": True, "micro_batch_tokens": 35}
TWO_RANKS = [
    Case("dp2", "qwen3-untied"),
    Case("dp2 tied, several packs", "qwen2-tied", changes={"micro_batch_tokens": 35}),
    Case("dp2, one rank without an example", "qwen3-untied", changes={"batch_size": 1}),
    Case("tp2 sp", "qwen3-untied", Layout(tensor=2, sequence_parallel=True)),
    Case("tp2 tied", "qwen2-tied", Layout(tensor=2), {"micro_batch_tokens": 35}),
    Case("pp2", "qwen3-untied", Layout(pipeline=2)),
    Case("pp2 tied, several packs", "qwen2-tied", Layout(pipeline=2), {"micro_batch_tokens": 35}),
    Case("pp2 vpp2", "qwen3-untied", Layout(pipeline=2, virtual_pipeline=2)),
    # Many small buckets, as a large model has many: each waits for its own weights.
    Case("dp2 overlap", "qwen3-untied", changes=OVERLAP, bucket_size=2000),
    Case("dp2 overlap tied", "qwen2-tied", changes=OVERLAP, bucket_size=2000),
    Case("dp2 overlap, one bucket", "qwen3-untied", changes=OVERLAP),
    Case("tp2 sp bf16", "qwen3-untied", Layout(tensor=2, sequence_parallel=True), BF16),
    Case("dp2 bf16 overlap", "qwen2-tied", changes=BF16 | {"overlap": True}),
    Case("cp2", "qwen3-untied", Layout(context=2)),
    Case("cp2 recompute", "qwen3-untied", Layout(context=2), {"recompute": "full"}),
    Case("cp2 tied, several packs", "qwen2-tied", Layout(context=2), {"micro_batch_tokens": 40}),
]
FOUR_RANKS = [
    Case("tp2 pp2 sp", "qwen3-untied", Layout(tensor=2, pipeline=2, sequence_parallel=True)),
    Case(
        "tp2 pp2 sp tied, several packs",
        "qwen2-tied",
        Layout(tensor=2, pipeline=2, sequence_parallel=True),
        {"micro_batch_tokens": 35},
    ),
    Case("tp2 cp2", "qwen3-untied", Layout(tensor=2, context=2)),
    Case(
        "tp2 cp2 sp tied",
        "qwen2-tied",
        Layout(tensor=2, context=2, sequence_parallel=True),
        {"micro_batch_tokens": 40},
    ),
    Case("pp2 cp2", "qwen3-untied", Layout(pipeline=2, context=2)),
    Case(
        "dp2 cp2, a rank without an example", "qwen3-untied", Layout(context=2), {"batch_size": 1}
    ),
    Case("dp2 pp2 vpp2", "qwen3-untied", Layout(pipeline=2, virtual_pipeline=2)),
    Case(
        "dp2 pp2 vpp2 overlap, recompute",
        "qwen2-tied",
        Layout(pipeline=2, virtual_pipeline=2),
        OVERLAP | {"recompute": "selective"},
        bucket_size=2000,
    ),
    Case("dp2 pp2 overlap", "qwen3-untied", Layout(pipeline=2), OVERLAP, bucket_size=2000),
    Case("dp2 pp2 overlap tied", "qwen2-tied", Layout(pipeline=2), OVERLAP, bucket_size=2000),
    Case("dp4, two ranks without an example", "qwen2-tied", changes={"batch_size": 2}),
]
