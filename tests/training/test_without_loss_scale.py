"""Training in bfloat16: float32 main weights, no loss scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.models.reference import tiny_model
from tests.parallel.launch import run_ranks
from tests.training.harness import with_layout

STEPS, RATE = 40, 2.0**-14


def found_on(rank: int, folder: str) -> dict[str, Any]:
    """Updates of one bfloat16 model whose every gradient is 1e-20."""
    from megatron_vr.parallel.layout import Layout

    return dict(with_layout(Layout(), _updated, Path(folder)))


def _updated(folder: Path) -> dict[str, Any]:
    from megatron_vr.config.settings import OptimizerSettings
    from megatron_vr.convert.load import load_hf
    from megatron_vr.models.architecture import read_architecture
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import Layout
    from megatron_vr.training.optimizer import build_optimizer, clip_gradient, step_with_clipped
    from megatron_vr.training.update import wrap_models

    architecture = read_architecture(folder)
    (model,) = build_model(
        *(architecture, Layout()),
        spec="plain",
        dtype="bfloat16",
        recompute="none",
        log_prob_chunk=16,
    )
    load_hf([model], folder, architecture)
    models = wrap_models([model])
    settings = OptimizerSettings(
        learning_rate=RATE, beta1=0.0, beta2=0.0, epsilon=1e-30, schedule="constant", clip=1e9
    )
    optimizer = build_optimizer(models, settings, torch.bfloat16)
    weight = model.decoder.final_layernorm.weight
    before = weight.detach().clone()
    after_one = None
    for _ in range(STEPS):
        models[0].zero_grad_buffer()
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.main_grad.fill_(1e-20)
        clip_gradient(optimizer, 1e9)
        step_with_clipped(optimizer)
        after_one = weight.detach().clone() if after_one is None else after_one
    return {
        "scale": float(optimizer.get_loss_scale()),
        "main": {str(main.dtype) for main in optimizer.get_parameters()},
        "weights": {str(parameter.dtype) for parameter in model.parameters()},
        "before": before,
        "after one": after_one,
        "after all": weight.detach().clone(),
    }


def test_updates_below_bfloat16s_spacing_add_up_and_no_loss_is_scaled(tmp_path: Path) -> None:
    """Without moments' memory Adam moves every weight by the learning rate, here 1/64 of
    bfloat16's spacing below 1, 2⁻⁸, whatever the gradient's size."""
    start = tiny_model("qwen3", False)
    with torch.no_grad():
        start.model.norm.weight.fill_(1.0)
    start.save_pretrained(tmp_path)
    (found,) = run_ranks(found_on, 1, str(tmp_path))
    assert found["scale"] == 1.0
    assert (found["main"], found["weights"]) == ({"torch.float32"}, {"torch.bfloat16"})
    ones = found["before"]
    assert ones.eq(1).all()
    assert found["after one"].eq(1).all()
    exact = 1 - STEPS * RATE
    assert found["after all"].eq(torch.tensor(exact).bfloat16()).all()
    assert torch.tensor(exact).bfloat16() < 1
