"""The head's kernels, interpreted on a CPU, give what a dense softmax in float64 gives."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.parallel.launch import run_ranks

# More columns than a program holds at once, and a vocabulary that ends within a rank's rows.
ROWS, VOCABULARY, HIDDEN, POSITIONS, CHUNK = 8200, 8197, 16, 7, 3
DTYPES = (torch.float32, torch.bfloat16)
# Of two positions and three columns.
LABELS = torch.tensor([0, 2])


def interpreted() -> Any:
    """The kernels in this process, run by Triton's interpreter."""
    assert "triton" not in sys.modules, "Triton reads the next line when it is imported"
    os.environ["TRITON_INTERPRET"] = "1"
    from megatron_vr.models import softmax, softmax_kernels

    softmax.by_kernels = lambda hidden: True
    return softmax_kernels


def inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(rows, HIDDEN, generator=generator) / 2).to(dtype)
    labels = torch.tensor([0, 8191, 8192, VOCABULARY - 1, 5, 8196, 77])
    return hidden, weight, labels, torch.linspace(-1, 2, POSITIONS)


def dense(
    hidden: Tensor, weight: Tensor, labels: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and both gradients in float64, from logits as the product in `hidden`'s type gives
    them."""
    wide = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    exact = wide[0] @ wide[1].t()
    rounded = (hidden @ weight.t()).double()
    logits = exact + (rounded - exact).detach()
    log_probs = logits[:, :VOCABULARY].log_softmax(1).gather(1, labels[:, None])[:, 0]
    return (log_probs.detach(), *torch.autograd.grad(factors.double() @ log_probs, wide))


def found_on(rank: int) -> dict[str, Any]:
    """What the kernels of one rank give, in a process where Triton was not imported before."""
    kernels = interpreted()
    heads = {(dtype, told): head(rank, dtype, told) for dtype in DTYPES for told in (True, False)}
    no_column = kernels.row_sums(torch.ones(3, 8), 0, torch.full((3,), -1))
    logits = torch.tensor([[3e4, 0.0, -3e4], [3e4, 3e4, -3e4]])
    sums = kernels.row_sums(logits, 3, LABELS)
    log_sums = sums[0] + sums[1].log()
    kernels.overwrite_with_gradient(logits, 3, LABELS, log_sums, torch.ones(2))
    return {"heads": heads, "no column": no_column, "large": (sums, logits)}


def head(rank: int, dtype: torch.dtype, announced: bool) -> tuple[Tensor, ...]:
    """The head's log-probs and gradients on one rank, which has an equal share of the rows."""
    from megatron_vr.models.log_prob import ChunkedLogProb
    from megatron_vr.models.vocabulary import VocabularyShard

    ranks = dist.get_world_size()
    hidden, weight, labels, factors = inputs(ROWS, dtype)
    own = weight.chunk(ranks)[rank].clone().requires_grad_()
    hidden.requires_grad_()
    shard = VocabularyShard(dist.group.WORLD, len(own), VOCABULARY)
    told = factors if announced else None
    log_probs = ChunkedLogProb.apply(hidden, own, labels, shard, CHUNK, told)
    (factors @ log_probs).backward()
    grad = hidden.grad.double()
    dist.all_reduce(grad)
    return log_probs.detach(), grad, own.grad


@pytest.fixture(scope="module")
def measured() -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks."""
    return {ranks: run_ranks(found_on, ranks, fresh=True) for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "looked-twice"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_the_kernels_give_the_dense_log_probs_and_gradients(
    dtype: torch.dtype, announced: bool, ranks: int, measured: dict[int, list[dict[str, Any]]]
) -> None:
    expected = dense(*inputs(ROWS, dtype))
    parts = [found["heads"][dtype, announced] for found in measured[ranks]]
    weight = torch.cat([part[2] for part in parts])
    # Gradients by the logits are rounded to bfloat16 (8 bits), and so are their products.
    allowed = 1e-5 if dtype == torch.float32 else 1e-2
    for log_probs, hidden_grad, _ in parts:
        torch.testing.assert_close(log_probs.double(), expected[0], atol=1e-5, rtol=0)
        assert _error(hidden_grad, expected[1]) < allowed
    assert _error(weight, expected[2]) < allowed
    assert weight[VOCABULARY:].abs().max() == 0, "rows that pad the vocabulary have a gradient"


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_a_rank_whose_rows_all_pad_the_vocabulary_adds_nothing(
    measured: dict[int, list[dict[str, Any]]],
) -> None:
    largest, total, target = measured[1][0]["no column"]
    assert largest.isneginf().all()
    assert total.eq(0).all() and target.eq(0).all()


def test_a_large_logit_does_not_overflow(measured: dict[int, list[dict[str, Any]]]) -> None:
    (largest, total, target), gradient = measured[1][0]["large"]
    assert largest.tolist() == [3e4, 3e4]
    torch.testing.assert_close(total, torch.tensor([1.0, 2.0]))
    assert target.tolist() == [3e4, -3e4]
    # log Σ exp is float32, whose values near 3e4 are 0.002 apart.
    expected = torch.tensor([[0.0, 0, 0], [-0.5, -0.5, 1]])
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=0)
