"""What a run would build on a kind of device, and why it could not: from its settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_vr.algorithm.check_model import architecture_of
from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.settings import Settings
from megatron_vr.config.spec_choice import resolve_spec
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.known import known_architecture
from megatron_vr.models.parts import Parts
from megatron_vr.models.support import build_faults, untested
from megatron_vr.parallel.layout import check_layout
from megatron_vr.training.resolved import Base, Resolved, resolved_scoring, resolved_training

# What FP8 was written against: taken where a device is asked for that is not here, nor the parts.
USUAL_TRANSFORMER_ENGINE = "2.20.2"
USUAL_CUDA = "13.0"


@dataclass(frozen=True)
class Target:
    """The device that is resolved for, and what is installed beside it. `notes` tell what of it
    was not found here but assumed."""

    name: str
    parts: Parts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResolvedRun:
    """`trainings` by their stages (those built alike together), and `scoring`.

    `faults` say, a line each, why the run could not be built so; empty where it could.
    """

    model: str
    device: str
    trainings: Mapping[tuple[str, ...], Resolved]
    scoring: Resolved
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "model": self.model,
            "device": self.device,
            "notes": list(self.notes),
            "faults": list(self.faults),
            "trainings": [
                {"stages": list(stages), **built.as_json()}
                for stages, built in self.trainings.items()
            ],
            "scoring": self.scoring.as_json(),
        }


def target_elsewhere(name: str, capability: tuple[int, int] | None, here: Parts) -> Target:
    """A device that this host need not have: with what is installed `here`, and where Transformer
    Engine or a torch for GPUs is not, with what is usual. `capability` None: no GPU."""
    parts = replace(here, capability=capability)
    if capability is None:
        return Target(name, parts)
    assumed = []
    if here.transformer_engine is None:
        parts = replace(parts, transformer_engine=USUAL_TRANSFORMER_ENGINE)
        assumed.append(f"Transformer Engine {USUAL_TRANSFORMER_ENGINE}")
    if here.cuda is None:
        parts = replace(parts, cuda=USUAL_CUDA)
        assumed.append(f"CUDA {USUAL_CUDA}")
    notes = (f"{' and '.join(assumed)} assumed: not installed here",) if assumed else ()
    return Target(name, parts, notes)


def resolve_run(settings: Settings, target: Target) -> ResolvedRun:
    """What the trainings and the scoring of the main row ask for on `target`.

    Nothing is fetched or loaded. Raises CheckpointError for a base of unknown shape, SettingsError
    for a comparison that cannot be made.
    """
    architecture = architecture_of(settings) or known_architecture(str(settings.model.path))
    parts = target.parts
    base = Base(settings.model, architecture, layout_of(settings), parts.on_gpu)
    by_stage = {
        "sft": settings.policy,
        "posterior": settings.posterior.train,
        "train": settings.train,
    }
    spec = resolve_spec(settings.model.spec, parts.on_gpu)
    built: list[tuple[list[str], Resolved]] = []
    for stage, training in by_stage.items():
        one = resolved_training(
            base,
            training.optimizer,
            micro_batch_tokens=training.micro_batch_tokens,
            overlap=settings.parallel.overlap,
        )
        alike = next((stages for stages, other in built if other == one), None)
        if alike is None:
            built.append(([stage], one))
        else:
            alike.append(stage)
    return ResolvedRun(
        model=settings.model.path or "random weights",
        device=target.name,
        trainings={tuple(stages): one for stages, one in built},
        scoring=resolved_scoring(base, micro_batch_tokens=settings.scoring.micro_batch_tokens),
        faults=tuple(_faults(settings, architecture, parts)),
        notes=(*target.notes, *untested(settings.model, spec, parts)),
    )


def _faults(settings: Settings, architecture: Architecture, parts: Parts) -> Iterator[str]:
    layout = layout_of(settings)
    main: set[str] = set()
    for name, row in arms(settings).items():
        where = "" if name == MAIN_ARM else f"comparisons.{name}: "
        try:
            check_settings(row, layout.model_ranks, on_gpu=parts.on_gpu, installed_here=False)
        except SettingsError as error:
            # What is wrong with all rows is told once.
            found = [line for line in str(error).splitlines() if line not in main]
            main.update(found if name == MAIN_ARM else ())
            yield from (where + line for line in found)
    try:
        check_layout(layout, architecture, layout.model_ranks)
    except SettingsError as error:
        yield str(error)
    spec = resolve_spec(settings.model.spec, parts.on_gpu)
    yield from build_faults(settings.model, spec, architecture, layout, parts)
