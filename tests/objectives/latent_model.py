"""A latent-variable language model small enough to enumerate every trace and every answer.

The vocabulary is {a, b, end}. A trace is up to three tokens and stops after `end`; an answer is up
to two and stops after `end`. Each next-token distribution is a row of logits of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

A, B, END = 0, 1, 2
Sequence = tuple[int, ...]


def sequences(longest: int) -> list[Sequence]:
    """Every token sequence that ends with END or has `longest` tokens."""
    return [
        (*body, *last)
        for length in range(1, longest + 1)
        for body in product((A, B), repeat=length - 1)
        for last in ([(END,)] if length < longest else [(A,), (B,), (END,)])
    ]


def prefixes(longest: int) -> list[Sequence]:
    """Every sequence that a further token can follow."""
    return [body for length in range(longest) for body in product((A, B), repeat=length)]


TRACES = sequences(3)
TRACE_LENGTHS = torch.tensor([len(trace) for trace in TRACES])
ANSWERS = sequences(2)
CORRECT = [(END,), (A, B), (B, END)]


def token_log_probs(logits: Tensor, sequence: Sequence, longest: int) -> Tensor:
    """[..., len(sequence)]: log p(token_t | tokens before t), from logits [..., prefixes, 3]."""
    states = [prefixes(longest).index(sequence[:t]) for t in range(len(sequence))]
    return logits.log_softmax(dim=-1)[..., states, list(sequence)]


def log_probs(logits: Tensor, longest: int) -> Tensor:
    """[..., sequences]: the log-prob of every sequence, from logits [..., prefixes, 3]."""
    return torch.stack(
        [token_log_probs(logits, each, longest).sum(dim=-1) for each in sequences(longest)], dim=-1
    )


@dataclass(frozen=True)
class LatentModel:
    """One question: π_θ(z|x), π_θ(y|x,z) and q_φ(z|x,y') as tables of logits, float64 leaves."""

    policy: Tensor  # [7 prefixes, 3]
    answers: Tensor  # [15 traces, 3 prefixes, 3]
    sampler: Tensor  # [7 prefixes, 3]

    @property
    def theta(self) -> list[Tensor]:
        return [self.policy, self.answers]

    def log_policy(self) -> Tensor:
        """log π_θ(z|x) [15]."""
        return log_probs(self.policy, longest=3)

    def log_sampler(self) -> Tensor:
        """log q_φ(z|x,y') [15]."""
        return log_probs(self.sampler, longest=3)

    def log_answers(self) -> Tensor:
        """log π_θ(y|x,z) [15 traces, 7 answers]."""
        return log_probs(self.answers, longest=2)

    def log_correct(self) -> Tensor:
        """log π_θ(Y_x|x,z) [15]."""
        return self.log_answers()[:, [ANSWERS.index(y) for y in CORRECT]].logsumexp(dim=1)

    def log_joint(self) -> Tensor:
        """log π_θ(z|x) + log π_θ(Y_x|x,z) [15]."""
        return self.log_policy() + self.log_correct()

    def log_evidence(self) -> Tensor:
        """log P_θ(Y_x|x), a scalar."""
        return self.log_joint().logsumexp(dim=0)

    def log_rho(self) -> Tensor:
        """log ρ(z) [15]."""
        return self.log_joint() - self.log_sampler()

    def posterior(self) -> Tensor:
        """P_θ(z|x,Y_x) [15], a constant."""
        return (self.log_joint() - self.log_evidence()).exp().detach()


def random_model(seed: int) -> LatentModel:
    """A model with standard normal logits."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    return LatentModel(logits(7, 3), logits(15, 3, 3), logits(7, 3))


def dyadic_model(seed: int) -> LatentModel:
    """A model whose every next-token distribution is (1/2, 1/4, 1/4) in some order.

    Every probability of a trace is then a multiple of 1/64 and of an answer a multiple of 1/16, so
    that a finite list of samples can stand in exact proportion to the probabilities.
    """
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        order = torch.rand(shape, generator=generator).argsort(dim=-1)
        values = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
        return values[order].requires_grad_()

    return LatentModel(logits(7, 3), logits(15, 3, 3), logits(7, 3))


def tuples(size: int) -> Tensor:
    """[15^K, K]: the indices of every K-tuple of traces."""
    indices = torch.arange(len(TRACES))
    return torch.cartesian_prod(*[indices] * size).reshape(-1, size)


def tuple_probabilities(log_prob: Tensor, size: int) -> Tensor:
    """[15^K]: the probability of each K-tuple of independent traces, from log-probs [15]."""
    return log_prob[tuples(size)].sum(dim=1).exp()


def gradients(value: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """d value / d parameters; zero where the value does not depend on one."""
    found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return list(found)


def assert_same(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    """Two lists of gradients agree to float64 rounding, and are not both zero."""
    assert any(float(e.abs().max()) > 1e-6 for e in expected), f"{what}: nothing to compare"
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12, msg=lambda m: f"{what}: {m}")
