"""`megatron-vr convert` and `quantize`: checkpoints from one format to another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from megatron_vr.cli_errors import AsJson, guarded
from megatron_vr.errors import DataError, SettingsError

if TYPE_CHECKING:
    from megatron_vr.convert.work import Done

app = typer.Typer(
    help="Checkpoints: Hugging Face ↔ Megatron (torch_dist), at any layout, bit for bit.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Source = Annotated[Path, typer.Argument(help="folder to read", show_default=False)]
Destination = Annotated[
    Path, typer.Argument(help="folder to write; must not exist, or be empty", show_default=False)
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="processes that work side by side  [default: by size and cores]"),
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="Hugging Face folder that a training's checkpoint began as: its config, tokenizer "
        "and licence. A checkpoint made by `to-megatron` carries them."
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="also read .bin and .pt files, tensors only")
]


@app.command("to-megatron")
def to_megatron(
    source: Source,
    destination: Destination,
    tp: Annotated[int, typer.Option(min=1, help="tensor-parallel ranks")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="pipeline-parallel ranks")] = 1,
    vpp: Annotated[
        int | None, typer.Option(min=2, help="virtual pipeline: model chunks on each rank")
    ] = None,
    processes: Processes = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write a Hugging Face folder as a Megatron torch_dist checkpoint.

    Any layout can load it. At the one that is named here each rank reads only its own part, and the
    vocabulary is padded for it. The architecture is that of config.json. Run again after a kill: it
    goes on after the last finished file.

    Example: `megatron-vr convert to-megatron Qwen3-8B-Base qwen3-8b-megatron --tp 8 --pp 4`
    """
    with guarded():
        from megatron_vr.convert.to_megatron import convert_to_megatron
        from megatron_vr.parallel.layout import Layout

        layout = Layout(tensor=tp, pipeline=pp, virtual_pipeline=vpp)
        with _in_flags():
            done = convert_to_megatron(
                source, destination, layout, allow_pickle=allow_pickle, processes=processes
            )
        _tell(destination, done, as_json)


@app.command("to-hf")
def to_hf(
    source: Source,
    destination: Destination,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16  [default: as stored]")
    ] = None,
    base: Base = None,
    processes: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Write a Megatron torch_dist checkpoint, saved at any layout, as a Hugging Face folder.

    Example: `megatron-vr convert to-hf runs/mine/…/checkpoints/step-001000 my-model --base
    Qwen3-8B-Base --dtype bfloat16`
    """
    with guarded():
        from megatron_vr.convert.to_hf import convert_to_hf

        done = convert_to_hf(source, destination, base=base, dtype=dtype, processes=processes)
        _tell(destination, done, as_json)


@app.command()
def check(
    a: Annotated[Path, typer.Argument(help="Hugging Face or Megatron folder", show_default=False)],
    b: Annotated[Path, typer.Argument(help="the other", show_default=False)],
    base: Base = None,
    prompts: Annotated[
        Path | None, typer.Option(help="text file, one prompt a line  [default: five of our own]")
    ] = None,
    logits: Annotated[
        bool, typer.Option(help="compare logits too: needs room for one model at a time")
    ] = True,
    compute: Annotated[
        str | None, typer.Option(help="float32 or bfloat16  [default: as both are stored]")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="also write the page to this file")] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Compare two folders: every tensor, shape and bit, then logits. Exit code 1 if they differ.

    Example: `megatron-vr convert check Qwen3-8B-Base qwen3-8b-megatron`
    """
    with guarded():
        from megatron_vr.convert.check import check as compare
        from megatron_vr.convert.logits import compute_name
        from megatron_vr.convert.verdict_page import page as render

        verdict = compare(
            a,
            b,
            base=base,
            prompts=_lines(prompts) if prompts else None,
            with_logits=logits,
            compute=compute_name(compute),
            allow_pickle=allow_pickle,
        )
        text = render(verdict)
        typer.echo(json.dumps(verdict.as_json(), indent=1) if as_json else text)
        if page is not None:
            page.write_text(text, encoding="utf-8")
    raise typer.Exit(0 if verdict.same else 1)


def quantize(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder to read", show_default=False)],
    destination: Destination,
    to: Annotated[str, typer.Option("--format", help="fp8: float8_e4m3fn weights and inputs")] = (
        "fp8"
    ),
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="JSONL whose lines have `text`, `question` or `messages`: what the model will "
            "read and write  [default: the model's own continuations of built-in prompts]"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="texts to calibrate on, at most")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of each, at most")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="of the choice of texts")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a quantised release of a Hugging Face folder, in the layout that vLLM and SGLang read.

    Scales come from nvidia-modelopt. What was written is read back and must compute what was
    quantised before the folder appears.

    Example: `megatron-vr quantize my-model my-model-fp8 --format fp8 --calibration traces.jsonl`
    """
    with guarded():
        from megatron_vr.convert.quantise import quantise

        done = quantise(
            source,
            destination,
            format=to,
            calibration=calibration,
            max_tokens=max_tokens,
            samples=samples,
            seed=seed,
        )
        if as_json:
            typer.echo(json.dumps(asdict(done) | {"folder": str(destination)}, indent=1))
            return
        apart = done.unquantised
        typer.echo(
            f"{destination}: {decimal(done.bytes_before)} → {decimal(done.bytes_after)}, "
            f"{done.matrices} matrices in {to}; read back, it computes what was quantised (logits "
            f"within {done.reload.max_abs:.1e}). Against the source, over {done.compared_tokens} "
            f"tokens{'' if done.held_out else ' of the calibration'}: logits differ by "
            f"{apart.mean_abs:.3f} on average, {apart.max_abs:.3f} at most; the same token is "
            f"preferred at {apart.top1_agreement:.1%}"
        )


@contextmanager
def _in_flags() -> Iterator[None]:
    """Messages about a layout name the settings of a run; here they are flags."""
    flags = {"tensor": "--tp", "pipeline": "--pp", "virtual_pipeline": "--vpp"}
    try:
        yield
    except SettingsError as error:
        text = re.sub(
            r"(?:parallel\.)?\b(virtual_pipeline|tensor|pipeline)=(\d+)",
            lambda found: f"{flags[found[1]]} {found[2]}",
            str(error),
        )
        text = re.sub(
            r"parallel\.(virtual_pipeline|tensor|pipeline)\b",
            lambda found: flags[found[1]],
            text,
        )
        raise SettingsError(text) from None


def _lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} has no prompt; write one a line.")
    return lines


def _tell(destination: Path, done: Done, as_json: bool) -> None:
    found: dict[str, Any] = asdict(done) | {"folder": str(destination)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    resumed = f" ({decimal(done.total - done.written)} were there)"
    typer.echo(
        f"{destination}: {decimal(done.total)} in {done.seconds:.1f} s, "
        f"{decimal(int(done.written / max(done.seconds, 1e-9)))}/s"
        + (resumed if done.written < done.total else "")
    )
