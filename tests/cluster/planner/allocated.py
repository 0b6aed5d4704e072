"""What small models really allocate, on each rank. Imports no transformers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from megatron_vr.cluster.planner.case import Case
from megatron_vr.config.settings import OptimizerSettings
from megatron_vr.training.micro_batch import MicroBatch, TokenTable, pack_shape
from tests.training.harness import with_layout

OPTIMIZER = OptimizerSettings(learning_rate=1e-3)


@dataclass
class Held:
    """Bytes above those at the beginning: `now`, and the `most` since."""

    now: list[int] = field(default_factory=list)
    most: int = 0


@contextmanager
def watched(held: Held) -> Iterator[None]:
    """`held` is filled, on leaving, with what torch's allocator of the CPU was asked for inside."""
    # What was left in circles must not be freed inside.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        held.now.append(total)
        held.most = max(held.most, total)


def built(case: Case) -> list[Any]:
    """This rank's stages of `case`, with zero weights and their gradient buffers."""
    from megatron_vr.models.gpt import build_model
    from megatron_vr.training.update import wrap_models

    models = build_model(
        case.architecture,
        case.layout,
        spec=case.spec,
        dtype=case.dtype,
        recompute=case.recompute,
        log_prob_chunk=case.log_prob_chunk,
    )
    return wrap_models(models, overlap=case.overlap)


def pack(case: Case, model: Any) -> MicroBatch:
    """One sequence that fills the micro-batch; all its tokens but the first are targets."""
    count = case.micro_batch_tokens + 1
    tokens = np.arange(count) % case.architecture.vocab_size
    table = TokenTable(tokens, np.arange(count) > 0, np.array([0, count]))
    return table.micro_batch([0], pack_shape(model.config), torch.device("cpu"))


def storages(tensors: Any) -> dict[int, int]:
    """Bytes of the distinct storages of `tensors`, by address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def on_rank(rank: int, case: Case, function: Callable[[Case], Any]) -> Any:
    """`function(case)` between Megatron's groups."""
    return with_layout(case.layout, function, case)


def _update(case: Case, models: list[Any], optimizer: Any, batches: int) -> None:
    from megatron_vr.training.update import Weighted, update

    batch = pack(case, models[0].module)
    weights = torch.ones(len(batch.targets))
    update(models, optimizer, [Weighted(batch, weights)] * batches, 100.0, 1.0)


def _optimizer(case: Case, models: list[Any]) -> Any:
    from megatron_vr.training.optimizer import build_optimizer

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[case.dtype]
    return build_optimizer(models, OPTIMIZER, dtype)


def states(case: Case) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer after a real update."""
    from megatron_vr.training.optimizer import torch_optimizers

    models = built(case)
    optimizer = _optimizer(case, models)
    _update(case, models, optimizer, 2 * case.layout.pipeline)
    parameters = [p for model in models for p in model.parameters()]
    buffers = [buffer for model in models for buffer in model.buffers]
    weights = storages(parameters)
    moments = [
        value
        for inner in torch_optimizers(optimizer)
        for state in inner.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    main = [
        parameter
        for inner in torch_optimizers(optimizer)
        for group in inner.param_groups
        for parameter in group["params"]
    ]
    states = {at: size for at, size in storages(moments + main).items() if at not in weights}
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights": sum(weights.values()),
        "gradients": sum(storages([buffer.grad_data for buffer in buffers]).values()),
        "optimizer": sum(states.values()),
    }


def gradients(case: Case) -> dict[str, int]:
    """Numbers in the gradient buffers, and in their largest bucket, of a model never trained."""
    models = built(case)
    buckets = [bucket for model in models for buffer in model.buffers for bucket in buffer.buckets]
    sizes = [bucket.grad_data.numel() for bucket in buckets]
    return {"buffer": sum(sizes), "bucket": max(sizes), "buckets": len(sizes)}


def forward_backward(case: Case) -> dict[str, int]:
    """Bytes that a forward pass keeps, and the most that it and its backward pass hold; of a model
    on one pipeline rank."""
    from megatron_vr.training.update import run_model

    (model,) = built(case)
    batch = pack(case, model.module)
    derivative = torch.full((len(batch.targets),), -0.01)

    def once(backward: bool) -> Any:
        log_probs = run_model(model, batch, derivative=derivative)
        loss = (log_probs * derivative).sum()
        if backward:
            loss.backward()
        return loss

    once(backward=True)
    forward, most = Held(), []
    # What gloo's threads let go of late only adds: less of it in the better of some passes.
    for _ in range(1 if case.processes == 1 else 3):
        both = Held()
        with watched(both):
            once(backward=True)
        most.append(both.most)
    # Last: modules hold on to parts of a forward pass that no backward pass followed.
    with watched(forward):
        loss = once(backward=False)
    del loss
    return {"kept": forward.now[-1], "peak": min(most), "forward": forward.most}


def step(case: Case) -> dict[str, int]:
    """The most that the second update of a training holds above what stays after it."""
    models = built(case)
    optimizer = _optimizer(case, models)
    _update(case, models, optimizer, case.layout.pipeline)
    held = Held()
    with watched(held):
        _update(case, models, optimizer, 3 * case.layout.pipeline)
    return {"peak": held.most}


def scored(case: Case) -> dict[str, int]:
    """The most that a forward pass without gradients holds; of a model on one pipeline rank."""
    from megatron_vr.training.update import run_model

    (model,) = built(case)
    batch, held = pack(case, model.module), Held()
    model.eval()
    with torch.no_grad(), watched(held):
        run_model(model, batch)
    return {"peak": held.most}


def saved(case: Case) -> dict[str, int]:
    """The most that collecting a checkpoint's content holds."""
    from megatron_vr.training.optimizer import build_schedule
    from megatron_vr.training.state import TrainingState

    models = built(case)
    optimizer = _optimizer(case, models)
    _update(case, models, optimizer, 1)
    schedule = build_schedule(optimizer, OPTIMIZER, 2)
    state, held = TrainingState([model.module for model in models], optimizer, schedule), Held()
    with watched(held):
        state.sharded(random=False)
    return {"peak": held.most}
