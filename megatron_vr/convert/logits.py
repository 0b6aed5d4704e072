"""Logits of a stored model on a few prompts: by Transformers or Megatron, as it is stored."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout

Compute = Literal["float32", "bfloat16"]

PROMPTS = (
    "The sum of the first ten odd numbers is one hundred, because",
    "Solve for x: 3x + 7 = 22. Let me think step by step.\n\nFirst, subtract 7 from both sides:",
    "def greatest_common_divisor(a: int, b: int) -> int:\n    while b:\n        a, b =",
    "Die Hauptstadt von Frankreich ist Paris; die von Italien ist",
    "从前有座山，山上有座庙，庙里有个老和尚在给小和尚讲故事：",
)
RANDOM_PROMPTS, RANDOM_TOKENS = 4, 48


@dataclass(frozen=True)
class LogitGap:
    """How far two models' logits are apart over `positions` positions of the prompts.

    `spread` is the standard deviation of the first model's logits over the vocabulary; `top1` the
    share of positions where both prefer the same token.
    """

    compute: Compute
    positions: int
    max_abs: float
    mean_abs: float
    top1: float
    spread: float
    tokenised: bool

    @property
    def acceptable(self) -> bool:
        """float32: 1e-4 at most anywhere. bfloat16, whose products each implementation rounds in
        places of its own: on average 2 % of the spread, and one token in twenty preferred
        otherwise."""
        if self.compute == "float32":
            return self.max_abs <= 1e-4
        return self.mean_abs <= 0.02 * self.spread and self.top1 >= 0.95


def compute_name(text: str | None) -> Compute | None:
    """`text` as a precision to compute in. Raises SettingsError for another."""
    if text is None or text in get_args(Compute):
        return cast(Compute | None, text)
    raise SettingsError(f"--compute {text!r} is unknown; use float32 or bfloat16.")


def prompt_ids(
    companions: Path, texts: Sequence[str] | None, architecture: Architecture
) -> tuple[list[Tensor], bool]:
    """Token ids [length] of `texts` (None: of built-in ones), and whether a tokenizer made them.

    A folder without a tokenizer gets random ids, unless texts were given: that is a SettingsError.
    """
    limit = min(512, architecture.max_positions)
    if _has_tokenizer(companions):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(companions), trust_remote_code=False)
        ids = [tokenizer(text).input_ids[:limit] for text in texts or PROMPTS]
        # A tokenizer for few characters may make nothing of a text.
        return [torch.tensor(one) for one in ids if one], True
    if texts:
        raise SettingsError(f"{companions} has no tokenizer to read the prompts with.")
    generator = torch.Generator().manual_seed(0)
    shape = (RANDOM_PROMPTS, min(RANDOM_TOKENS, limit))
    return list(torch.randint(architecture.vocab_size, shape, generator=generator)), False


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


@torch.no_grad()
def hf_logits(folder: Path, prompts: Sequence[Tensor], compute: Compute) -> list[Tensor]:
    """Logits [length, vocabulary] float32 of each prompt, by Transformers."""
    from transformers import AutoModelForCausalLM

    device = _device()
    dtype = getattr(torch, compute)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, trust_remote_code=False)
    model = model.eval().to(device)
    found = [model(ids[None].to(device)).logits[0].float().cpu() for ids in prompts]
    del model
    gc.collect()
    return found


@torch.no_grad()
def megatron_logits(
    folder: Path, architecture: Architecture, prompts: Sequence[Tensor], compute: Compute
) -> list[Tensor]:
    """Logits [length, vocabulary] float32 of each prompt, by Megatron on this process alone.

    The checkpoint goes through Megatron's own loader. Raises CheckpointError where that fails.
    """
    from megatron_vr.convert.load import load_megatron
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import destroy, initialise, join_world

    join_world(timeout_minutes=10)
    initialise(Layout(), seed=1, device=_device())
    try:
        (model,) = models = build_model(
            architecture,
            Layout(),
            spec="plain",
            dtype=compute,
            recompute="none",
            log_prob_chunk="auto",
        )
        load_megatron(models, folder)
        model.eval()
        return [_forward(model, ids.to(_device())) for ids in prompts]
    finally:
        destroy()


def _forward(model: Any, ids: Tensor) -> Tensor:
    positions = torch.arange(len(ids), device=ids.device)
    logits: Tensor = model(ids[None], positions[None], None)[0]
    return logits.float().cpu()


def gap(a: Sequence[Tensor], b: Sequence[Tensor], compute: Compute, tokenised: bool) -> LogitGap:
    """Compare two models' logits. Raises CheckpointError where one's are not numbers."""
    first, second = torch.cat(list(a)), torch.cat(list(b))
    difference = (first - second).abs()
    if not bool(torch.isfinite(difference).all()):
        raise CheckpointError("the logits hold values that are not finite; a tensor is damaged.")
    return LogitGap(
        compute=compute,
        positions=len(first),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        top1=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
        spread=float(first.std(-1).mean()),
        tokenised=tokenised,
    )


def _device() -> Literal["cpu", "cuda"]:
    return "cuda" if torch.cuda.is_available() else "cpu"
