"""What a plan assumes about lengths, data and speeds, in one typed place."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from megatron_vr.config.frozen import Count, Fraction, Frozen, Positive, Whole


class PlanAssumptions(Frozen):
    """`--assume key=value`, or keys of the file --measured. Tokens are means unless told otherwise.

    The default lengths are guesses of the order that reasoning models show: outputs of Qwen3-8B on
    GPQA have 8,113 ± 4,202 tokens (ml.energy leaderboard, 2026), and the questions of
    Bespoke-Stratos-17k are mostly easier. The system prompt of the format `qwen` has about 150
    tokens.
    """

    prompt_tokens: Count = Field(350, description="of system prompt and question")
    trace_tokens: Count = Field(5500, description="of a trace, sampled or of the references")
    answer_tokens: Count = Field(600, description="of an answer after its trace")
    spread: Annotated[float, Field(ge=0)] = Field(
        0.7, description="standard deviation of the lengths over their mean"
    )
    correct: Fraction = Field(0.7, description="share of samples that the verifier accepts")
    train_questions: Count | None = Field(None, description="null: counted from the settings")
    references: Whole | None = Field(None, description="of these with a reference; null: counted")
    test_questions: Count | None = Field(None, description="null: counted from the settings")

    network_gbs: Positive | None = Field(
        None, description="10⁹ bytes a second and GPU between nodes; null: the device's usual"
    )
    disk_gbs: Positive = Field(2.0, description="10⁹ bytes a second of the shared file system")
    download_gbs: Positive = Field(0.1, description="10⁹ bytes a second from the hub")
    export_gbs: Positive = Field(
        0.6, description="10⁹ bytes of weights exported a second (docs/performance.md)"
    )
    start_seconds: Positive = Field(
        240.0, description="from a job's start until it computes: processes, weights, first kernels"
    )
    embedded_slower: Positive = Field(
        4.0, description="engine.kind: embedded over servers; a guess, measure it"
    )

    train_tflops_per_gpu: Positive | None = Field(
        None, description="measured: model TFLOP/s of training, `tflops` in metrics.jsonl"
    )
    score_tflops_per_gpu: Positive | None = Field(
        None, description="measured: model TFLOP/s of scoring (a forward pass)"
    )
    sample_tokens_per_second_per_gpu: Positive | None = Field(
        None, description="measured: tokens sampled a second and GPU, the end of a stage included"
    )
