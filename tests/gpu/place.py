"""Where the tests compute: the GPU, or in a rehearsal the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.spec_choice import Spec

HOPPER = (9, 0)


@dataclass(frozen=True)
class Place:
    """`spec` are the layers under test. A rehearsal runs the same programs with plain layers and
    without FP8: it shows that they run, and nothing of a GPU."""

    device: Literal["cuda", "cpu"]
    spec: Spec
    rehearsing: bool

    def fp8(self, settings: Fp8Settings | None) -> Fp8Settings | None:
        """`settings`, but in a rehearsal none."""
        return None if self.rehearsing else settings

    def steps(self, asked: int) -> int:
        """Of a long training: `asked`, in a rehearsal two thirds."""
        return asked * 2 // 3 if self.rehearsing else asked


ON_GPU = Place("cuda", "te", rehearsing=False)
REHEARSAL = Place("cpu", "plain", rehearsing=True)


def missing() -> str | None:
    """Why these tests cannot run on this host, in a sentence; None where they can."""
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU"
    found = torch.cuda.get_device_capability()
    if found < HOPPER:
        return f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"Transformer Engine cannot be imported ({type(error).__name__}: {error})"
    return None


def first_rehearsed(names: Iterable[str]) -> list[Any]:
    """Parameters of a test that differ in FP8 alone: without it all would be the same rehearsal."""
    alike = pytest.mark.needs_gpu("without FP8 it is the same as another")
    return [pytest.param(name, marks=[alike] if index else []) for index, name in enumerate(names)]


def forget_fp8() -> None:
    """As in a new process: Transformer Engine keeps amax histories of all models of one."""
    with contextlib.suppress(ImportError):
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reset()
