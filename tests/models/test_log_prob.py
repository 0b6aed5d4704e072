"""The chunked head equals a dense float32 log_softmax, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_vr.models.log_prob import Head, Targets, log_probs_at
from megatron_vr.objectives.loss import derivative_by_log_prob, weighted_negative_log_likelihood

VOCABULARY, PADDED, HIDDEN, BATCH, LENGTH = 29, 32, 8, 3, 11

pytestmark = pytest.mark.usefixtures("megatron")


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(LENGTH, BATCH, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(PADDED, HIDDEN, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
    mask = torch.rand(BATCH, LENGTH, generator=generator) < 0.6
    return hidden, weight, labels, mask


def dense(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    logits = (hidden.transpose(0, 1) @ weight[:VOCABULARY].t()).float()
    return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0][mask]


def head(weight: Tensor, chunk: int, vocabulary: int = VOCABULARY) -> Head:
    return Head(weight, vocabulary, chunk, sequence_parallel=False, group=dist.group.WORLD)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int) -> Tensor:
    return log_probs_at(head(weight, chunk), hidden, Targets(labels, mask))


def announced(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int) -> Tensor:
    """As `chunked`, told beforehand the derivative that `gradients` will bring."""
    derivative = torch.linspace(-1, 2, int(mask.sum()))
    return log_probs_at(head(weight, chunk), hidden, Targets(labels, mask, derivative))


def gradients(log_probs_of: Callable[..., Tensor], *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, and the gradients of hidden and weight for uneven weights of the positions."""
    hidden, weight, *rest = args
    log_probs = log_probs_of(hidden, weight, *rest)
    coefficients = torch.linspace(-1, 2, len(log_probs))
    return (log_probs, *torch.autograd.grad(coefficients @ log_probs, (hidden, weight)))


@pytest.mark.parametrize("path", [chunked, announced])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_of_any_size_give_the_dense_values_and_gradients(
    chunk: int, path: Callable[..., Tensor]
) -> None:
    expected = gradients(dense, *inputs())
    found = gradients(path, *inputs(), chunk)
    assert found[0].dtype == torch.float32
    for name, wanted, got in zip(("values", "hidden", "weight"), expected, found, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("path", [chunked, announced])
def test_columns_that_pad_the_vocabulary_have_no_probability_and_no_gradient(
    path: Callable[..., Tensor],
) -> None:
    hidden, weight, labels, mask = inputs()
    with torch.no_grad():
        # Would win every softmax.
        weight[VOCABULARY:] = 1e4 * hidden[0, 0]
    log_probs, _, grad_weight = gradients(path, hidden, weight, labels, mask, 4)
    torch.testing.assert_close(log_probs, dense(hidden, weight, labels, mask))
    assert grad_weight[VOCABULARY:].abs().max() == 0


def test_bfloat16_weights_reduce_in_float32() -> None:
    hidden, weight, labels, mask = (tensor.detach() for tensor in inputs())
    low = hidden.bfloat16(), weight.bfloat16()
    exact = dense(low[0].float(), low[1].float(), labels, mask)
    found = chunked(*low, labels, mask, 4)
    assert found.dtype == torch.float32
    # What remains is the rounding of the logits, of magnitude |logit| / 256.
    assert (found - exact).abs().max() < 0.06


def test_no_loss_position_is_no_log_prob_and_zero_gradient() -> None:
    hidden, weight, labels, mask = inputs()
    log_probs, grad_hidden, grad_weight = gradients(
        chunked, hidden, weight, labels, torch.zeros_like(mask), 4
    )
    assert log_probs.shape == (0,)
    assert grad_hidden.abs().max() == grad_weight.abs().max() == 0


def test_a_label_outside_the_vocabulary_is_nan() -> None:
    hidden, weight, labels, mask = inputs()
    labels[mask] = torch.where(torch.arange(int(mask.sum())) == 2, VOCABULARY, labels[mask])
    log_probs = chunked(hidden, weight, labels, mask, 4)
    assert log_probs.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("path", [chunked, announced])
def test_the_weights_gradient_goes_to_main_grad_once_for_every_micro_batch(
    path: Callable[..., Tensor], tied: bool
) -> None:
    hidden, weight, labels, mask = inputs()
    expected = gradients(dense, hidden, weight, labels, mask)[2]
    coefficients = torch.linspace(-1, 2, int(mask.sum()))
    weight.main_grad = torch.zeros_like(weight)
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, tied
    for _ in range(3):
        (coefficients @ path(hidden, weight, labels, mask, 4)).backward()
    torch.testing.assert_close(weight.main_grad, 3 * expected, atol=1e-5, rtol=1e-5)
    assert weight.grad_added_to_main_grad
    # Autograd sees a gradient, so that hooks run, but one that adds nothing.
    assert weight.grad is not None and weight.grad.abs().max() == 0


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("early", [False, True])
def test_logits_of_one_chunk_at_most_exist_forward_and_backward(early: bool) -> None:
    # Vocabulary and positions are large against the rest, so logits would be the largest.
    vocabulary, length, hidden_size, chunk = 400, 200, 2, 5
    hidden = torch.randn(length, 1, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=True)
    labels = torch.randint(0, vocabulary, (1, length))
    mask = torch.ones_like(labels, dtype=torch.bool)
    derivative = torch.ones(length) if early else None
    with Largest() as largest:
        found = log_probs_at(
            head(weight, chunk, vocabulary), hidden, Targets(labels, mask, derivative)
        )
        found.sum().backward()
    assert largest.numel <= chunk * vocabulary


def test_a_derivative_that_was_not_the_truth_is_an_error() -> None:
    hidden, weight, labels, mask = inputs()
    derivative = torch.ones(int(mask.sum()))
    derivative[3] = 1.01
    log_probs = log_probs_at(head(weight, 4), hidden, Targets(labels, mask, derivative))
    with pytest.raises(RuntimeError, match=r"announced in Targets\.derivative"):
        log_probs.sum().backward()


def test_the_derivative_of_the_loss_is_the_one_that_training_announces() -> None:
    log_probs = torch.randn(9, requires_grad=True)
    weights = torch.tensor([0.0, 0.3, 1e-6, 7.0, 1.0, 0.0, 2.0, 0.1, 3.3])
    weighted_negative_log_likelihood(log_probs, weights, 37.3).backward()
    torch.testing.assert_close(derivative_by_log_prob(weights, 37.3), log_probs.grad)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_entropies_are_those_of_the_dense_softmax(chunk: int) -> None:
    hidden, weight, labels, mask = inputs()
    found = log_probs_at(head(weight, chunk), hidden, Targets(labels, mask, entropy=True))
    logits = (hidden.transpose(0, 1) @ weight[:VOCABULARY].t())[mask]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found[0], dense(hidden, weight, labels, mask))
    torch.testing.assert_close(found[1], expected)
