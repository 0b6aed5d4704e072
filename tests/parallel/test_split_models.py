"""Models split over two processes compute what the whole Hugging Face model computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.models.architecture import read_architecture
from megatron_vr.parallel.layout import Layout
from tests.parallel.launch import dissolve, run_ranks

# Four packs (micro-batches: interleaving wants an even number) that split evenly over two ranks.
PACKS = [[9, 13, 2], [30], [5, 5, 5, 5, 6], [3, 21]]


@dataclass(frozen=True)
class Case:
    family: str
    tied: bool
    layout: Layout
    recompute: str = "none"

    @property
    def model(self) -> str:
        return f"{self.family}-{'tied' if self.tied else 'untied'}"

    def __str__(self) -> str:
        parts = [self.model, f"tp{self.layout.tensor}", f"pp{self.layout.pipeline}"]
        if self.layout.sequence_parallel:
            parts.append("sp")
        if self.layout.virtual_pipeline:
            parts.append(f"vpp{self.layout.virtual_pipeline}")
        return "-".join([*parts, f"recompute-{self.recompute}"])


CASES = [
    Case("qwen3", False, Layout(tensor=2)),
    Case("qwen3", True, Layout(tensor=2, sequence_parallel=True), recompute="full"),
    Case("qwen2", True, Layout(tensor=2), recompute="selective"),
    Case("qwen2", False, Layout(tensor=2, sequence_parallel=True)),
    Case("qwen3", True, Layout(pipeline=2), recompute="selective"),
    Case("qwen2", False, Layout(pipeline=2, virtual_pipeline=2)),
    Case("llama", False, Layout(tensor=2)),
    Case("llama", True, Layout(pipeline=2)),
    Case("qwen3_moe", False, Layout(tensor=2, sequence_parallel=True), recompute="full"),
    Case("qwen3_moe", True, Layout(pipeline=2), recompute="selective"),
    Case("qwen3_moe", True, Layout(pipeline=2, virtual_pipeline=2)),
]

# Whose checkpoints are exported again: sharded over tensor ranks, and over virtual stages.
SAVED = (CASES[1], CASES[5], CASES[8], CASES[10])


def sequences() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        [torch.randint(0, 131, (length,), generator=generator) for length in pack] for pack in PACKS
    ]


def forward_backward(models: list[Any]) -> list[torch.Tensor]:
    """Megatron's schedule over all packs; the loss is minus the sum of the log-probs."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_vr.models.log_prob import Targets

    def loss(log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        return -log_probs.sum(), torch.tensor(1, dtype=torch.int), {"log_probs": log_probs.detach()}

    def step(data: Any, model: Any) -> Any:
        pack = next(data)
        lengths = torch.tensor([len(ids) for ids in pack])
        bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
        longest = int(lengths.max())
        ids = torch.cat(pack)[None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, bounds[1:] - 1] = False
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()])[None]
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        output = model(
            ids,
            positions,
            None,
            labels=Targets(ids.roll(-1, 1), mask),
            packed_seq_params=packed,
        )
        return output, loss

    models[0].config.finalize_model_grads_func = finalize_model_grads
    interleaved = len(models) > 1
    # One iterator for each virtual stage: every stage reads every pack.
    data = [iter(sequences()) for _ in models]
    results = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=data if interleaved else data[0],
        model=models if interleaved else models[0],
        num_microbatches=len(PACKS),
        seq_length=sum(PACKS[0]),
        micro_batch_size=1,
        forward_only=False,
    )
    return [result["log_probs"] for result in results]


def save_checkpoint(models: list[Any], folder: Path) -> None:
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    state = {f"model{stage}": model.sharded_state_dict() for stage, model in enumerate(models)}
    dist_checkpointing.save(state, str(folder))


def check_case(case: Case, folder: Path) -> tuple[list[torch.Tensor], dict[str, float]]:
    """This rank's log-probs (last stage) and each parameter's worst relative gradient error."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from megatron_vr.convert.load import load_hf
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import initialise

    initialise(case.layout, 1, "cpu")
    weights, gradients = folder / case.model, folder / f"{case.model}-gradients"
    architecture = read_architecture(weights)

    def build(source: Path) -> list[Any]:
        models: list[Any] = build_model(
            architecture,
            case.layout,
            spec="plain",
            dtype="float32",
            recompute=case.recompute,
            log_prob_chunk=8,
        )
        load_hf(models, source, architecture)
        return models

    models, expected = build(weights), build(gradients)
    wrapped = [
        DistributedDataParallel(
            model.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model
        )
        for model in models
    ]
    if case in SAVED:
        save_checkpoint(models, folder / f"{case}-checkpoint")
    log_probs = forward_backward(wrapped)
    errors = {}
    for model, reference in zip(models, expected, strict=True):
        wanted = dict(reference.named_parameters())
        for name, parameter in model.named_parameters():
            difference = (parameter.main_grad * len(PACKS) - wanted[name].detach()).abs().max()
            errors[name] = float(difference / wanted[name].abs().max())
    dissolve()
    return log_probs, errors


def check_all(rank: int, folder: str) -> dict[str, Any]:
    return {str(case): check_case(case, Path(folder)) for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Reference log-probs by model, and what each rank found in every case."""
    # Here, so that the spawned processes need not import Transformers.
    from tests.models.reference import label_log_probs, save_gradients, tiny_model

    reference = {}
    for case in CASES:
        if case.model in reference:
            continue
        model = tiny_model(case.family, case.tied)
        model.save_pretrained(folder / case.model)
        log_probs = [label_log_probs(model, ids) for pack in sequences() for ids in pack]
        (-torch.cat(log_probs).sum()).backward()
        save_gradients(model, folder / f"{case.model}-gradients")
        reference[case.model] = torch.cat(log_probs).detach()
    return reference, run_ranks(check_all, 2, str(folder))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_split_model_gives_the_whole_models_log_probs(case: Case, measured: Any) -> None:
    reference, ranks = measured
    found = [torch.cat(rank[str(case)][0]) for rank in ranks if rank[str(case)][0]]
    # Every tensor rank has them all; with pipeline stages only the last.
    assert len(found) == case.layout.tensor
    for log_probs in found:
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs, reference[case.model], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_split_model_gives_the_whole_models_gradients(case: Case, measured: Any) -> None:
    _, ranks = measured
    for rank in ranks:
        errors = rank[str(case)][1]
        worst = max(errors, key=errors.__getitem__)
        assert errors[worst] < 1e-4, f"gradient of {worst} is off by {errors[worst]:.1e} (relative)"


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("case", SAVED, ids=str)
def test_a_checkpoint_of_a_split_model_exports_the_source_bit_for_bit(
    case: Case, folder: Path
) -> None:
    source, destination = folder / case.model, folder / f"{case}-exported"
    checkpoint = folder / f"{case}-checkpoint"
    convert_to_hf(checkpoint, destination, base=source, processes=1)
    expected, found = (load_file(path / "model.safetensors") for path in (source, destination))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name
