"""A converted checkpoint is loaded by real ranks at any layout, saved by them, and read live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.models.architecture import read_architecture
from megatron_vr.parallel.layout import Layout
from tests.convert.stored import (
    assert_same_bits,
    assert_same_companions,
    tensors_of,
    write_folder,
)
from tests.parallel.launch import dissolve, run_ranks


@dataclass(frozen=True)
class Case:
    """A model, the layout it was converted for, and the one that loads it."""

    family: str
    tied: bool
    written: Layout
    loaded: Layout

    def __str__(self) -> str:
        parts = [self.family, "tied" if self.tied else "untied"]
        for layout in (self.written, self.loaded):
            parts.append(f"tp{layout.tensor}pp{layout.pipeline}vpp{layout.virtual_pipeline}")
        return "-".join(parts)


TP2_PP2 = Layout(tensor=2, pipeline=2, sequence_parallel=True)
CASES = [
    Case("qwen3", False, TP2_PP2, TP2_PP2),
    Case("qwen2", True, TP2_PP2, Layout(pipeline=4)),
    Case("llama", False, Layout(), Layout(tensor=2, pipeline=2, sequence_parallel=True)),
    Case("qwen3", True, Layout(tensor=4), Layout(pipeline=2, virtual_pipeline=2)),
    Case("qwen3_moe", False, TP2_PP2, TP2_PP2),
]


def load_save_and_read(rank: int, folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """Per case: load, save anew, and on rank 0 what is read live."""
    from megatron_vr.convert.live import live_tensors
    from megatron_vr.convert.load import load_megatron
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import initialise
    from tests.parallel.test_split_models import save_checkpoint

    found = {}
    for case in CASES:
        initialise(case.loaded, 1, "cpu")
        base = Path(folder) / str(case)
        architecture = read_architecture(base / "hf")
        models: list[Any] = build_model(
            architecture,
            case.loaded,
            spec="plain",
            dtype="float32",
            recompute="none",
            log_prob_chunk=8,
        )
        load_megatron(models, base / "megatron")
        found[str(case)] = dict(live_tensors(models, architecture))
        save_checkpoint(models, base / "saved")
        dissolve()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def live(folder: Path) -> list[dict[str, dict[str, torch.Tensor]]]:
    for case in CASES:
        # 131 tokens and four key/value heads: a vocabulary that every tensor layout must pad.
        write_folder(
            folder / str(case) / "hf",
            case.family,
            case.tied,
            num_hidden_layers=4,
            num_key_value_heads=4,
        )
        base = folder / str(case)
        convert_to_megatron(base / "hf", base / "megatron", case.written)
    return run_ranks(load_save_and_read, 4, str(folder))


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_ranks_load_and_save_is_the_source_bit_for_bit(case: Case, folder: Path) -> None:
    base = folder / str(case)
    convert_to_hf(base / "saved", base / "back", base=base / "hf")
    assert_same_bits(base / "hf", base / "back")
    assert_same_companions(base / "hf", base / "back")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_rank_reads_the_whole_model_live(case: Case, folder: Path, live: Any) -> None:
    expected = tensors_of(folder / str(case) / "hf")
    assert live[0][str(case)].keys() == expected.keys()
    for name, tensor in expected.items():
        assert live[0][str(case)][name].equal(tensor), name
    assert not any(rank[str(case)] for rank in live[1:]), "other ranks were handed tensors"
