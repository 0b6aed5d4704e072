"""Settings that are each valid but do not go together: found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from megatron_vr.config.fp8_settings import ALIGN
from megatron_vr.config.model_checks import model_faults
from megatron_vr.config.padding import pack_multiple, sequence_multiple
from megatron_vr.config.settings import Settings
from megatron_vr.config.spec_choice import resolve_spec, without_transformer_engine
from megatron_vr.errors import SettingsError


def check_settings(
    settings: Settings,
    processes: int,
    where: str = "",
    *,
    on_gpu: bool | None,
    installed_here: bool = True,
) -> None:
    """Raise SettingsError with one line for each conflict, naming settings and what to do.

    `where` goes before each line. `on_gpu`: whether the processes have GPUs, None where that is
    not known. Not `installed_here`: what the settings need is looked for where the processes start,
    as in a container.
    """
    faults = [where + fault for fault in _faults(settings, processes, installed_here, on_gpu)]
    if faults:
        raise SettingsError("\n".join(faults))


def _faults(
    s: Settings, processes: int, installed_here: bool, on_gpu: bool | None
) -> Iterator[str]:
    yield from _parallel_faults(s, processes)
    if s.traces.sampler == "policy" and s.weights.estimator != "accuracy":
        yield (
            f"weights.estimator is {s.weights.estimator!r}, but with traces.sampler: policy the "
            "rollouts' own verdicts weigh them; use weights.estimator: accuracy"
        )
    if s.traces.sampler == "none" and not s.data.references:
        yield (
            "traces.sampler is none and data.references is false: nothing is left to learn from; "
            "set one of them"
        )
    if not getattr(s.problems, s.evaluation.problems):
        yield (
            f"evaluation.problems is {s.evaluation.problems}, but problems.{s.evaluation.problems} "
            "has no source; add one"
        )
    if s.policy.start == "last":
        yield "policy.start is last, but nothing comes before the first training; use base"
    yield from _spec_faults(s, installed_here, on_gpu)
    yield from _context_faults(s)
    yield from _padding_faults(s)
    yield from _warmup_faults(s)
    yield from _length_faults(s)


def _parallel_faults(s: Settings, processes: int) -> Iterator[str]:
    p = s.parallel
    model_ranks = p.tensor * p.pipeline * p.context
    if processes % model_ranks:
        yield (
            f"parallel.tensor × pipeline × context is {model_ranks}, which does not divide the "
            f"{processes} processes; change parallel.processes or the layout"
        )
    if p.sequence and p.tensor == 1:
        yield "parallel.sequence needs parallel.tensor > 1; turn it off or split the tensors"


def _spec_faults(s: Settings, installed_here: bool, on_gpu: bool | None) -> Iterator[str]:
    if s.model.spec == "auto" and on_gpu is None:
        return
    spec = resolve_spec(s.model.spec, bool(on_gpu))
    yield from model_faults(s.model, spec, overlap=s.parallel.overlap)
    if spec == "te" and installed_here and find_spec("transformer_engine") is None:
        yield without_transformer_engine(s.model.spec)


def _context_faults(s: Settings) -> Iterator[str]:
    """Context parallelism pads every sequence to two chunks for each rank."""
    multiple = sequence_multiple(s.parallel.context)
    for name, budget in (*_training_budgets(s), ("scoring", s.scoring.micro_batch_tokens)):
        if budget % multiple:
            yield (
                f"{name}.micro_batch_tokens is {budget}, which is not a multiple of {multiple} "
                f"(twice parallel.context); use {budget + -budget % multiple}"
            )


def _training_budgets(s: Settings) -> tuple[tuple[str, int], ...]:
    return (
        ("policy", s.policy.micro_batch_tokens),
        ("posterior.train", s.posterior.train.micro_batch_tokens),
        ("train", s.train.micro_batch_tokens),
    )


def _padding_faults(s: Settings) -> Iterator[str]:
    """In FP8 a full pack is padded to whole blocks on each rank: the budget must have room."""
    if s.model.fp8 is None:
        return
    context, share = s.parallel.context, s.parallel.tensor if s.parallel.sequence else 1
    align = ALIGN[s.model.fp8.recipe]
    multiple = pack_multiple(context, share, align)
    for name, budget in _training_budgets(s):
        if budget % multiple:
            yield (
                f"{name}.micro_batch_tokens is {budget}, but with model.fp8: {s.model.fp8.recipe} "
                f"packs are padded to a multiple of {multiple}, {align} for "
                f"each of {context * share} ranks that share one; use {budget + -budget % multiple}"
            )


def _length_faults(s: Settings) -> Iterator[str]:
    """A kept trace must fit into one micro-batch; its prompt and answer are seen only later."""
    if s.traces.sampler == "none":
        return
    sampled = (s.traces if s.traces.sampler == "posterior" else s.rollouts).max_new_tokens
    longest = min(sampled, s.traces.drop_longer_than or sampled)
    for name, budget in (
        ("train.micro_batch_tokens", s.train.micro_batch_tokens),
        ("scoring.micro_batch_tokens", s.scoring.micro_batch_tokens),
    ):
        if longest >= budget:
            yield (
                f"{name} is {budget}, but traces of up to {longest} tokens are kept; raise it, or "
                "lower traces.drop_longer_than"
            )


def _warmup_faults(s: Settings) -> Iterator[str]:
    trainings = {"policy": s.policy, "posterior.train": s.posterior.train, "train": s.train}
    for name, training in trainings.items():
        warmup = training.optimizer.warmup_steps
        if training.steps is not None and warmup >= training.steps:
            yield (
                f"{name}.optimizer.warmup_steps is {warmup}, but {name}.steps is "
                f"{training.steps}; warm up for fewer steps or train for more"
            )
