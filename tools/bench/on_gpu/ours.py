"""A training of this package on random weights of any shape, as the trainer puts one together."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import OptimizerSettings
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.configuration import Recompute
from megatron_vr.models.gpt import build_model
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.batches import Draw
from megatron_vr.training.clock import StepClock
from megatron_vr.training.feed import Feed
from megatron_vr.training.micro_batch import TokenTable
from megatron_vr.training.optimizer import build_optimizer
from megatron_vr.training.update import Outcome, update, wrap_models
from tools.bench.harness import form_groups
from tools.bench.on_gpu.place import Place

# As published models of these sizes begin.
DEVIATION = 0.02


def form_groups_once() -> None:
    """Megatron's process groups, unless this process has them."""
    if not dist.is_initialized():
        form_groups()


def fp8_of(recipe: str, place: Place) -> Fp8Settings | None:
    """The settings of a recipe by its name; None for bf16, and on a CPU, which has no FP8."""
    if recipe == "bf16" or place.rehearse:
        return None
    return Fp8Settings.model_validate({"recipe": recipe})


@dataclass(frozen=True)
class Training:
    """The wrapped model, the bare one, and the optimizer; the gradient is clipped to `clip`."""

    models: Sequence[Any]
    bare: Any
    optimizer: Any
    clip: float

    @staticmethod
    def build(
        architecture: Architecture,
        place: Place,
        fp8: Fp8Settings | None,
        *,
        recompute: Recompute = "none",
        settings: OptimizerSettings | None = None,
        seed: int = 0,
    ) -> Training:
        """Random weights, drawn on the device: a model of billions takes seconds."""
        form_groups_once()
        settings = settings or OptimizerSettings()
        bare = build_model(
            architecture,
            Layout(),
            spec=place.spec,
            dtype="bfloat16",
            recompute=recompute,
            log_prob_chunk="auto",
            fp8=fp8,
        )
        for model in bare:
            fill(model, seed)
        models = wrap_models(bare, fp8=fp8)
        optimizer = build_optimizer(models, settings, torch.bfloat16, fp8)
        return Training(models, bare[0], optimizer, settings.clip)

    def feed(self, table: TokenTable, budget: int) -> Feed:
        """Packs of `table` for this model, of up to `budget` places."""
        return Feed.of(table, self.bare, budget, share_prompts=False)

    def step(
        self, feed: Feed, draws: Sequence[Draw], normaliser: float, clock: StepClock | None = None
    ) -> Outcome:
        """One update, its packing included, as the trainer makes it."""
        clock = clock or StepClock()
        with clock.phase("data"):
            fed = feed.weighted(draws)
        return update(self.models, self.optimizer, fed.batches, normaliser, self.clip, clock=clock)


@torch.no_grad()
def fill(model: Any, seed: int) -> None:
    """Draw all matrices; norms stay as they were built."""
    parameters = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter in parameters:
        parameter.normal_(0.0, DEVIATION, generator=generator)


def forget_fp8() -> None:
    """Drop what Transformer Engine keeps in this process of models that are gone."""
    engine = sys.modules.get("transformer_engine.pytorch")
    if engine is None:
        return
    # Where it is has changed; older versions have the other.
    newer = importlib.util.find_spec("transformer_engine.pytorch.quantization") is not None
    name = "quantization" if newer else "fp8"
    module = importlib.import_module(f"transformer_engine.pytorch.{name}")
    module.FP8GlobalStateManager.reset()
