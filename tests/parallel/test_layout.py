"""Layouts that cannot work are refused before a process group exists."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel import cpu_compat
from megatron_vr.parallel.layout import (
    Layout,
    check_layout,
    device_defaults,
    initialise,
    join_world,
)

# Megatron's parts for other models, hardware and duties than ours.
NOT_USED = (
    *("fsdp", "energy_monitor", "fp8_utils", "full_cuda_graph", "nccl_allocator"),
    *("hybrid_cp_schedule", "pipeline_parallel.utils", "rerun_state_machine", "layer_wise"),
)

MODEL = Architecture(
    family="qwen3",
    hidden_size=64,
    ffn_hidden_size=96,
    layers=12,
    heads=8,
    kv_heads=4,
    head_dim=16,
    vocab_size=100,
    max_positions=64,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied=False,
)


@pytest.mark.parametrize(
    ("layout", "world"),
    [
        (Layout(), 1),
        (Layout(), 7),
        (Layout(tensor=4, sequence_parallel=True), 4),
        (Layout(tensor=2, pipeline=3, virtual_pipeline=2), 12),
        (Layout(tensor=2, context=2), 8),
    ],
)
def test_a_layout_that_divides_everything_is_accepted(layout: Layout, world: int) -> None:
    check_layout(layout, MODEL, world)


@pytest.mark.parametrize(
    ("layout", "change", "world", "message"),
    [
        (Layout(tensor=3), {}, 3, r"parallel\.tensor=3 .* 8 attention heads"),
        (Layout(tensor=8), {}, 8, r"parallel\.tensor=8 .* 4 key/value heads"),
        (Layout(tensor=4), {"ffn_hidden_size": 98}, 4, r"parallel\.tensor=4 .* 98 MLP units"),
        (Layout(tensor=4), {"vocab_size": 3}, 4, r"parallel\.tensor=4 .* vocabulary of 3"),
        (Layout(pipeline=5), {}, 5, r"parallel\.pipeline=5 .* 12 layers"),
        (
            Layout(pipeline=2, virtual_pipeline=5),
            {},
            2,
            r"pipeline=2 with parallel\.virtual_pipeline=5 .* 12 layers",
        ),
        (Layout(virtual_pipeline=2), {}, 1, r"virtual_pipeline=2 .* parallel\.pipeline=1"),
        (Layout(pipeline=2, virtual_pipeline=1), {}, 2, r"virtual_pipeline=1 must be at least 2"),
        (Layout(sequence_parallel=True), {}, 1, r"parallel\.sequence=true .* parallel\.tensor=1"),
        (Layout(tensor=2, pipeline=2), {}, 6, r"parallel\.processes=6 .* 2 x 2 x 1 = 4"),
        (Layout(tensor=2), {}, 1, r"parallel\.processes=1 .* = 2"),
        (Layout(tensor=0), {}, 1, r"parallel\.tensor=0 must be at least 1"),
        (Layout(context=-1), {}, 1, r"parallel\.context=-1 must be at least 1"),
    ],
)
def test_a_layout_that_cannot_work_names_the_setting_and_its_value(
    layout: Layout, change: dict[str, Any], world: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_layout(layout, replace(MODEL, **change), world)


def test_deciding_about_a_layout_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, megatron_vr.parallel.layout as layout; layout.Layout();"
        "print([name for name in ('torch', 'megatron.core') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_vocabulary_is_padded_to_a_multiple_of_the_tensor_ranks() -> None:
    assert Layout(tensor=4).padded_vocabulary(100) == 100
    assert Layout(tensor=4).padded_vocabulary(101) == 104


def test_a_world_of_one_meets_without_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*args: object) -> None:
        raise AssertionError("a TCP port was bound")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    join_world(timeout_minutes=1)
    try:
        join_world(timeout_minutes=1)
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
    finally:
        dist.destroy_process_group()


def test_a_world_that_does_not_say_where_to_meet_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SettingsError, match=r"WORLD_SIZE=2 but .*MASTER_ADDR"):
        join_world(timeout_minutes=1)


def test_groups_cannot_be_formed_before_the_world_is_joined() -> None:
    with pytest.raises(RuntimeError, match="join_world"):
        initialise(Layout(), seed=1, device="cpu")


def test_cpu_compatibility_refuses_a_process_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA_VISIBLE_DEVICES"):
        cpu_compat.enable_cpu()


def test_megatron_alone_is_told_that_the_cpu_is_its_gpu() -> None:
    cpu_compat.enable_cpu()
    patched = torch.cuda.current_device
    cpu_compat.enable_cpu()
    assert torch.cuda.current_device is patched, "the second call must change nothing"
    tensor = torch.zeros(2)
    megatron = {"__name__": "megatron.core.optimizer.optimizer", "torch": torch, "tensor": tensor}
    assert eval("tensor.type()", megatron) == "torch.cuda.FloatTensor"
    assert eval("tensor.cuda()", megatron) is tensor
    assert eval("torch.cuda.current_device()", megatron) == torch.device("cpu")
    assert tensor.type() == "torch.FloatTensor"
    for cuda_only in (
        torch.cuda.current_device,
        tensor.cuda,
        lambda: torch.zeros(2, device="cuda"),
        lambda: torch.cuda.manual_seed(1) or torch.cuda.get_rng_state(),
    ):
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            cuda_only()


def test_models_are_still_built_on_the_meta_device() -> None:
    cpu_compat.enable_cpu()
    with torch.device("meta"):
        made = [torch.empty(2), torch.zeros(2), torch.tensor(2.0), torch.ones(2)]
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_every_part_of_megatron_that_training_runs_and_that_names_cuda_is_known() -> None:
    import megatron.core

    (root,) = megatron.core.__path__
    parts = [
        *("dist_checkpointing", "distributed", "models/common", "models/gpt", "optimizer"),
        *("pipeline_parallel", "tensor_parallel"),
    ]
    files = [path for part in parts for path in (Path(root) / part).rglob("*.py")]
    files += Path(root).glob("*.py")
    naming = {
        "megatron.core." + ".".join(path.relative_to(root).with_suffix("").parts)
        for path in files
        if re.search(r"""device ?= ?["']cuda["']""", path.read_text(encoding="utf-8"))
    }
    unused = {name for name in naming if any(word in name for word in NOT_USED)}
    assert naming - unused == set(cpu_compat.FACTORY_CALLERS)


def test_a_rank_with_a_gpu_keeps_what_its_environment_says() -> None:
    assert device_defaults({}) == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    own = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}
    assert device_defaults(own) == {}
