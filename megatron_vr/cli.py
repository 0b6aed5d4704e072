"""The command: one sub-command per thing a user does. Thin; the work is in the package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from megatron_vr.cli_cluster import submit
from megatron_vr.cli_convert import app as convert
from megatron_vr.cli_convert import quantize
from megatron_vr.cli_doctor import doctor
from megatron_vr.cli_errors import AsJson, Config, Overrides, guarded
from megatron_vr.cli_evaluate import benchmarks, compare, evaluate
from megatron_vr.cli_plan import plan
from megatron_vr.cli_serve import serve
from megatron_vr.cli_stage import stage
from megatron_vr.cli_status import cancel, status
from megatron_vr.errors import SettingsError

STAGES = {
    "sft": "Fine-tune the base on reference traces: π_θ0 (iteration 0).",
    "posterior": "Train the posterior q_φ by forward KL.",
    "sample": "Sample traces from the posterior, and rollouts from the policy where needed.",
    "score": "Log-probs of the traces under the policy and the posterior.",
    "answer": "Sample and grade answers after each trace.",
    "weigh": "Importance weights of the traces, and the choice of what is learned.",
    "train": "Train the policy on the weighted traces: π_θt.",
    "export": "Write trained checkpoints as Hugging Face folders.",
}

TRAININGS = ("sft", "posterior", "train")

app = typer.Typer(
    help="Variational reasoning for language models on Megatron-Core.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Iteration = Annotated[int, typer.Option(help="t of Algorithm 1")]
Arm = Annotated[str, typer.Option(help="row of the results table")]
StartOver = Annotated[
    bool, typer.Option("--start-over", help="delete stages made under other settings")
]


Fp8Check = Annotated[
    int | None,
    typer.Option(
        "--fp8-check",
        min=1,
        metavar="STEPS",
        help="do not train: make the first STEPS steps of this training twice, in bfloat16 and as "
        "model.fp8 says, and compare their losses and speed; exit code 1 where they are too far "
        "apart or FP8 is not finite. Writes fp8-check.json and .png into the training's folder",
        show_default=False,
    ),
]
Fp8Gap = Annotated[
    float | None,
    typer.Option(
        "--fp8-gap",
        min=0.0,
        metavar="SHARE",
        help="with --fp8-check: how far the mean losses of the last tenth of the steps (at least "
        "10) may be apart, as a share of the loss  [default: 0.005]",
        show_default=False,
    ),
]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    seeds: Annotated[
        str, typer.Option(help="several runs, as in 1,2,3: mean ± spread over them")
    ] = "",
    start_over: StartOver = False,
    as_json: AsJson = False,
) -> None:
    """The whole algorithm, every iteration and comparison, resuming where it stopped.

    Example: `megatron-vr run examples/toy.yaml run.folder=runs/mine train.steps=400`

    Exit codes: 0 done; 1 failed; 2 bad usage or settings; 75 stopped by SIGTERM or SIGUSR1 after
    saving: run the same command again.
    """
    from megatron_vr.cli_run import run_once, run_seeds

    with guarded():
        chosen = _seeds(seeds)
        if chosen:
            run_seeds(config, overrides or [], chosen, start_over, as_json)
        else:
            run_once(config, overrides or [], start_over, as_json)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        config: Config,
        overrides: Overrides = None,
        iteration: Iteration = 1,
        arm: Arm = "variational",
        start_over: StartOver = False,
    ) -> None:
        with guarded():
            _run_stage(stage, config, overrides or [], iteration, arm, start_over)

    return command


def _training_command(stage: str) -> Callable[..., None]:
    first = 0 if stage == "sft" else 1

    def command(
        config: Config,
        overrides: Overrides = None,
        iteration: Iteration = first,
        arm: Arm = "variational",
        start_over: StartOver = False,
        fp8_check: Fp8Check = None,
        fp8_gap: Fp8Gap = None,
    ) -> None:
        with guarded():
            if fp8_check is None and fp8_gap is None:
                _run_stage(stage, config, overrides or [], iteration, arm, start_over)
                return
            from megatron_vr.cli_fp8_check import asked_for, run_fp8_check

            asked = asked_for(fp8_check, fp8_gap, start_over)
            run_fp8_check(stage, config, overrides or [], iteration, arm, asked)

    return command


def _run_stage(
    stage: str, config: Path, overrides: list[str], iteration: int, arm: str, start_over: bool
) -> None:
    from megatron_vr.algorithm.alone import ALONE, run_alone
    from megatron_vr.cli_run import run_stage
    from megatron_vr.config.load import load_settings
    from megatron_vr.parallel.launch import is_launched

    if stage in ALONE and not is_launched():
        run_alone(stage, load_settings(config, overrides), iteration, arm, start_over=start_over)
    else:
        run_stage(stage, config, overrides, iteration, arm, start_over)


@app.command("export", help=f"{STAGES['export']} One stage of `run`; its inputs must be done.")
def export(
    config: Config,
    overrides: Overrides = None,
    iteration: Iteration = 1,
    arm: Arm = "variational",
    start_over: StartOver = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="then upload the model to the hub, with a model card written from the run",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="with --push: where everyone can read it")
    ] = False,
) -> None:
    """One stage of `run`, and the way to the hub."""
    with guarded():
        if public and push is None:
            raise SettingsError("--public says how to push; give --push ORG/NAME too")
        if push is not None:
            # Its bars are for people; the hub's library reads this when it is imported.
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
            from megatron_vr.convert.hub import check_repo

            check_repo(push)
        _run_stage("export", config, overrides or [], iteration, arm, start_over)
        if push is not None:
            address = _pushed(config, overrides or [], iteration, arm, push, not public)
            if address:
                typer.echo(address)


def _pushed(
    config: Path, overrides: list[str], iteration: int, arm: str, repo: str, private: bool
) -> str | None:
    """The commit's address; None on ranks that upload nothing."""
    from megatron_vr.algorithm.alone import prepare_alone
    from megatron_vr.algorithm.release import push_export
    from megatron_vr.cli_run import push_model
    from megatron_vr.config.load import load_settings
    from megatron_vr.parallel.launch import is_launched

    if is_launched():
        return push_model(config, overrides, iteration, arm, repo, private)
    prepared = prepare_alone(load_settings(config, overrides))
    return push_export(prepared, arm, iteration, repo, private=private)


for _stage, _help in STAGES.items():
    if _stage == "export":
        continue
    _make = _training_command if _stage in TRAININGS else _stage_command
    app.command(_stage, help=f"{_help} One stage of `run`; its inputs must be done.")(_make(_stage))


app.add_typer(convert, name="convert")
app.command()(quantize)
app.command()(serve)
app.command()(stage)
app.command()(plan)
app.command()(submit)
app.command()(status)
app.command()(cancel)
app.command()(evaluate)
app.command()(compare)
app.command()(benchmarks)
app.command()(doctor)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a run, finished or not")],
) -> None:
    """The HTML page and PNG plots of a run."""
    from megatron_vr.report.page import write_report

    with guarded():
        typer.echo(write_report(folder))


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",") if seed.strip()]
    except ValueError:
        raise SettingsError(
            f"--seeds {text!r} is not a list of whole numbers such as 1,2,3"
        ) from None


def main() -> None:
    """Entry point of `megatron-vr`."""
    from megatron_vr.parallel.launch import end_with_parent

    end_with_parent()
    # Megatron warns at every import that Transformer Engine and apex are absent: `doctor` says so.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # Bars of our own tell the progress.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()
