"""Every setting of a run, its type and its default. Nothing else holds a default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_vr.config.cluster_settings import ClusterSettings
from megatron_vr.config.engine_settings import EngineSettings
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.frozen import Count, Fraction, Frozen, Positive, Whole
from megatron_vr.config.grading_settings import GradingSettings
from megatron_vr.problems.source_settings import Source


class RunSettings(Frozen):
    """Where the run lives and what makes it repeatable."""

    folder: Path = Field(description="folder of all tables, checkpoints and the report")
    seed: Whole = Field(1, description="every random choice follows from it")
    iterations: Count = Field(1, description="T of Algorithm 1")


class RandomModel(Frozen):
    """Shape of a Qwen3 model made from random weights (for runs from scratch)."""

    hidden_size: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    head_dim: Count = 32
    ffn_hidden_size: Count = 544
    max_positions: Count = 96
    tied: bool = Field(True, description="one matrix for embedding and output")


class ModelSettings(Frozen):
    """The base model and how Megatron builds it."""

    path: str | None = Field(None, description="Hugging Face folder (or hub id) of the base")
    random: RandomModel | None = Field(None, description="or: a random model of this shape")
    spec: Literal["auto", "plain", "te"] = Field(
        "auto",
        description="layers: Transformer Engine (te, GPUs alone) or plain torch (any device); "
        "auto: te on GPUs, plain without",
    )
    attention: Literal["fused", "flash"] = Field(
        "fused", description="kernel of te's attention: cuDNN's, or flash-attn's"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    fp8: Fp8Settings | None = Field(
        None,
        description="trainings' matrix products of the layers in FP8; needs te. A recipe's name "
        "stands for {recipe: NAME}",
    )
    recompute: Literal["none", "selective", "full"] = "none"
    log_prob_chunk: Count | Literal["auto"] = Field(
        "auto",
        description="positions projected at once by the head; auto: 128 MiB of logits on a CPU, "
        "1 GiB on a GPU",
    )

    @field_validator("fp8", mode="before")
    @classmethod
    def _named_recipe(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_base(self) -> ModelSettings:
        if (self.path is None) == (self.random is None):
            raise ValueError("give exactly one of model.path and model.random")
        return self


class ProblemSettings(Frozen):
    """Where questions come from. The three sets must not share a question."""

    train: tuple[Source, ...] = Field(min_length=1)
    validation: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()


class PromptSettings(Frozen):
    """How a question, a hint, a trace and an answer become tokens."""

    format: str = Field("qwen", description="`qwen`, `toy`, or a folder like the shipped ones")
    posterior: str = Field("pa", description="template of the hinted prompt: pa, pb, or yours")


class ParallelSettings(Frozen):
    """Processes and how Megatron splits the model over them."""

    processes: Count | Literal["auto"] = Field(
        "auto", description="auto: one for each GPU, or for each core up to 8 without a GPU"
    )
    tensor: Count = 1
    pipeline: Count = 1
    virtual_pipeline: Count | None = None
    context: Count = 1
    sequence: bool = False
    overlap: bool = Field(
        False, description="sum gradients and gather weights while the model computes"
    )
    timeout_minutes: Positive = Field(30.0, description="a collective that takes longer fails")
    dead_after_seconds: Positive = Field(
        60.0, description="a rank that gives no sign for so long is named and ends the run"
    )


class OptimizerSettings(Frozen):
    """AdamW with warm-up and a decay of the learning rate."""

    learning_rate: Positive = 1e-5
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = Field(1.0, description="largest norm of the whole gradient")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Whole = 0
    final_fraction: Fraction = Field(0.1, description="learning rate at the end over its peak")


class TrainSettings(Frozen):
    """One training: how long, how large its steps are, and with what optimizer."""

    start: Literal["base", "last"] = Field(
        "base", description="weights to begin from: the base model or the last iteration's"
    )
    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count = Field(64, description="examples per optimizer step, over all ranks")
    micro_batch_tokens: Count = Field(32768, description="tokens packed into one micro-batch")
    weighting: Literal["loss", "draw"] = Field(
        "loss",
        description="weights multiply the loss, or are the probability of being drawn; "
        "the expected gradient is the same",
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    too_long: Literal["error", "drop"] = Field(
        "error", description="examples of more than micro_batch_tokens: stop, or drop and count"
    )
    not_finite: Literal["stop", "skip"] = Field(
        "stop", description="a loss or gradient that is not finite: stop, or skip and count"
    )
    skips_allowed: Count = Field(10, description="skipped updates in one training; more stop it")
    save_every: Count = Field(500, description="steps between checkpoints to resume from")
    save_aside: bool = Field(
        True, description="write checkpoints in the background from a copy in host memory"
    )
    keep_last: Count = Field(1, description="checkpoints kept")
    keep_every: Count | None = Field(
        None, description="also kept: checkpoints of steps that are multiples of this"
    )
    log_every: Count = Field(10, description="steps between lines in the metrics")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        return self


class PosteriorSettings(Frozen):
    """The posterior q_φ(z|x,y') and what it learns from by forward KL."""

    hint: bool = Field(True, description="false: the ablation whose posterior sees no answer")
    data: Literal["references", "rollouts", "both"] = Field(
        "references", description="reference traces, the policy's own graded rollouts, or both"
    )
    train: TrainSettings


class SamplingSettings(Frozen):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 32764


class RolloutSettings(SamplingSettings):
    """Complete outputs (trace and answer) of the policy, graded."""

    per_question: Count = 8


class TraceSettings(SamplingSettings):
    """K traces per question from the sampler."""

    sampler: Literal["posterior", "policy", "none"] = Field(
        "posterior",
        description="posterior: this method; policy: RFT (the graded rollouts); "
        "none: reference traces only (SFT)",
    )
    per_question: Count = Field(8, description="K")
    temperature: Annotated[float, Field(ge=0)] = 0.7
    drop_longer_than: Count | None = Field(
        28000, description="traces of more tokens are dropped and counted"
    )


class AnswerSettings(SamplingSettings):
    """N answers per trace from the policy, for the accuracy estimator."""

    per_trace: Count = Field(8, description="N")
    temperature: Annotated[float, Field(ge=0)] = 0.7
    max_new_tokens: Count = 4096


class WeightSettings(Frozen):
    """The importance weight ρ̃ of a trace."""

    estimator: Literal["accuracy", "gml", "likelihood"] = "accuracy"
    ratio: Literal["geometric-mean", "sequence", "none"] = "geometric-mean"
    normalise: Literal["question", "none"] = Field(
        "question", description="to 1 over a question's traces, or left as they are (RFT)"
    )


class DataSettings(Frozen):
    """What the θ-step learns from."""

    traces: Literal["all", "best"] = Field(
        "all", description="every trace with its weight, or each question's highest-weighted one"
    )
    references: bool = Field(True, description="also the reference response where there is one")
    no_correct_trace: Literal["reference", "drop"] = Field(
        "reference", description="for a question without a correct trace"
    )


class EvaluationSettings(SamplingSettings):
    """Accuracy of the greedy answer, of samples, and pass@k."""

    samples: Count = 8
    k: Count = 8
    problems: Literal["test", "validation"] = "test"

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluationSettings:
        if self.k > self.samples:
            raise ValueError(
                f"pass@{self.k} needs at least as many samples; there are {self.samples}"
            )
        return self


class ScoringSettings(Frozen):
    """The log-prob pass."""

    micro_batch_tokens: Count = 32768
    part_size: Count = Field(4096, description="traces per part: what a kill can lose")
    per_token: bool = Field(
        False, description="keep log-prob and entropy of every token, in score/policy, /posterior"
    )
    largest_engine_gap: Positive | None = Field(
        0.1,
        description="mean |log-prob of the engine − of the trainer| in nats per token that stops "
        "the run; null: never",
    )


class ReportSettings(Frozen):
    """Where the metrics go besides the run's folder."""

    tensorboard: bool = True
    wandb_project: str | None = None
    sample_traces: Whole = Field(6, description="traces shown in full, coloured by token weight")


class Settings(Frozen):
    """One run of the algorithm."""

    run: RunSettings
    model: ModelSettings
    problems: ProblemSettings
    prompts: PromptSettings = PromptSettings()
    parallel: ParallelSettings = ParallelSettings()
    policy: TrainSettings = Field(description="π_θ0: fine-tuning of the base on reference traces")
    rollouts: RolloutSettings = RolloutSettings()
    posterior: PosteriorSettings
    traces: TraceSettings = TraceSettings()
    answers: AnswerSettings = AnswerSettings()
    weights: WeightSettings = WeightSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = Field(description="π_θt: the θ-step")
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    scoring: ScoringSettings = ScoringSettings()
    grading: GradingSettings = GradingSettings()
    report: ReportSettings = ReportSettings()
    cluster: ClusterSettings = ClusterSettings()
    comparisons: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="rows beside `variational`: a name and the settings in which it differs",
    )
