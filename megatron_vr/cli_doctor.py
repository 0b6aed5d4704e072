"""`megatron-vr doctor`: what is installed here, and what a run would build from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_vr.cli_errors import AsJson, Overrides, guarded
from megatron_vr.errors import SettingsError

if TYPE_CHECKING:
    from megatron_vr.algorithm.resolved_run import ResolvedRun, Target

# Where this host has no GPU.
USUAL = "h100"


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="settings (YAML) of a run; without them only this host is looked at"),
    ] = None,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="with CONFIG, resolve for: h100, h100-pcie, h200, b200, a100, a100-pcie or cpu "
            "[default: this host's GPU, or h100 where there is none]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, devices, and optional parts: found or missing, and what each is for.

    With CONFIG also what a training and the scoring of that run would be built from: whose layers
    and why these, precisions, attention's kernel, how packs are padded; with --json every field
    that Megatron is given. Nothing is loaded or started, and no GPU is needed. What cannot be
    built so, or is known to go wrong, is told line by line, and the exit code is 2.

    `megatron-vr doctor`

    `megatron-vr doctor my.yaml --device h200 model.fp8=blockwise`

    `megatron-vr doctor my.yaml --json model.fp8='{recipe: tensorwise, last_layers_bf16: 1}'`
    """
    from megatron_vr.report.doctor import examine, print_findings

    with guarded():
        if config is None and device is not None:
            raise SettingsError("--device says what to resolve settings for; give their file too")
        run = None if config is None else _resolved(config, overrides or [], device)
        findings = examine()
        if as_json:
            host = [vars(finding) for finding in findings]
            told: Any = host if run is None else {"host": host, **run.as_json()}
            typer.echo(json.dumps(told, indent=1))
        else:
            print_findings(findings)
            if run is not None:
                _print_run(run)
    if run is not None and run.faults:
        raise typer.Exit(SettingsError.exit_code)


def _resolved(config: Path, overrides: list[str], device: str | None) -> ResolvedRun:
    from megatron_vr.algorithm.resolved_run import resolve_run
    from megatron_vr.config.load import load_settings

    return resolve_run(load_settings(config, overrides), _target(device))


def _target(device: str | None) -> Target:
    import torch

    from megatron_vr.algorithm.resolved_run import Target, target_elsewhere
    from megatron_vr.cluster.planner.hardware import device_called
    from megatron_vr.models.parts import find_parts

    here = find_parts()
    if device is None and here.on_gpu:
        return Target(torch.cuda.get_device_name(), here)
    if device == "cpu":
        return target_elsewhere("a CPU", None, here)
    chosen = device_called(device or USUAL)
    found = target_elsewhere(chosen.name, chosen.capability, here)
    if device is not None:
        return found
    note = f"this host has no GPU: resolved for --device {USUAL}"
    return Target(found.name, found.parts, (note, *found.notes))


def _print_run(run: ResolvedRun) -> None:
    from rich.console import Console

    from megatron_vr.report.resolved_table import print_resolved

    out = Console(highlight=False, soft_wrap=True)
    out.print(f"\n{run.model} on {run.device}", markup=False)
    for note in run.notes:
        out.print(f"({note})", markup=False)
    print_resolved(run.trainings, run.scoring)
    for fault in run.faults:
        out.print(f"NOT AS IT IS: {fault}", markup=False, style="bold")
