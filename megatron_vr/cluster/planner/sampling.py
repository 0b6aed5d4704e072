"""Seconds in which rollout servers (vLLM, SGLang) sample. Pure.

Decoding is bound by memory: one step reads the weights once and the cache of every running
sequence, and gives each of these a token. How many run at once is limited by the client and by the
memory that the weights leave. In the end the longest sequences run alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.cluster.planner.hardware import GIB, Device
from megatron_vr.cluster.planner.parameters import matrix_parameters
from megatron_vr.cluster.planner.rates import DECODE, DecodeRates
from megatron_vr.models.architecture import Architecture
from megatron_vr.training.flops import ModelFlops


@dataclass(frozen=True)
class Server:
    """One copy of a model on `gpus` GPUs (tensor parallel), in weights of `width` bytes each, the
    cache in two bytes. At most `concurrency` sequences run at once."""

    architecture: Architecture
    device: Device
    gpus: int
    concurrency: int
    width: int = 2
    rates: DecodeRates = DECODE

    @property
    def parameters(self) -> int:
        """All weights, those of the matrix products and of the embedding."""
        return matrix_parameters(self.architecture)

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers, over all GPUs."""
        a = self.architecture
        return 2 * 2 * a.layers * a.kv_heads * a.head_dim

    @property
    def cache_tokens(self) -> float:
        """Tokens whose keys and values fit beside the weights; negative where these do not fit."""
        rates = self.rates
        held = (self.device.memory_gib * rates.reserved - rates.workspace_gib) * GIB * self.gpus
        # Where there are more GPUs than key/value heads, each head lies on several.
        copies = max(1.0, self.gpus / self.architecture.kv_heads)
        return (held - self.parameters * self.width) / (self.cache_per_token * copies)

    def running(self, context: float) -> float:
        """Sequences of `context` tokens on average that run at once; below 1 not one does."""
        return min(float(self.concurrency), self.cache_tokens / context)

    def step(self, batch: float, context: float) -> float:
        """Seconds of one decoding step of `batch` sequences of `context` tokens on average."""
        rates, device = self.rates, self.device
        bandwidth = device.memory_tbs * 1e12 * self.gpus
        dtype = "bfloat16" if self.width == 2 else "float32"
        a = self.architecture
        read = self.parameters - (0 if a.tied else a.vocab_size * a.hidden_size)
        flops = ModelFlops.of(a)
        compute = batch * (flops.projections + flops.head)
        compute /= device.peak(dtype) * rates.product * self.gpus
        weights = max(read * self.width / (bandwidth * rates.weights), compute)
        cache = batch * context * self.cache_per_token / (bandwidth * rates.cache)
        return rates.step + batch * rates.sequence + weights + cache + self._sums(batch)

    def prefill(self, tokens: float) -> float:
        """Seconds in which `tokens` of prompts are read."""
        flops = ModelFlops.of(self.architecture)
        dtype = "bfloat16" if self.width == 2 else "float32"
        return (
            tokens * flops.projections / (self.device.peak(dtype) * self.rates.prefill * self.gpus)
        )

    def _sums(self, batch: float) -> float:
        if self.gpus == 1:
            return 0.0
        a, rates = self.architecture, self.rates
        size = 2 * (self.gpus - 1) / self.gpus * batch * a.hidden_size * self.width
        link = self.device.nvlink_gbs * 1e9 * rates.nvlink
        return 2 * a.layers * (rates.hop + size / link)


@dataclass(frozen=True)
class Asked:
    """Generations: `count` of them after prompts of `prompt` tokens, each of `tokens` on average
    with standard deviation `spread` · `tokens`, the longest of `longest`. `read` tokens of all
    prompts together are computed; the rest is in the servers' prefix cache."""

    count: int
    prompt: float
    tokens: float
    longest: float
    spread: float
    read: float

    @property
    def context(self) -> float:
        """Tokens in the cache of a running sequence, on average over time."""
        return self.prompt + self.remaining

    @property
    def remaining(self) -> float:
        """Tokens that a running sequence has still to go, and has behind it, on average over time:
        E[l²] / 2 E[l], at most half the longest."""
        return min(self.tokens * (1 + self.spread**2) / 2, self.longest / 2)


def sampling_seconds(server: Server, servers: int, asked: Asked) -> float:
    """Seconds in which `servers` of these sample all that is `asked`.

    Raises ValueError where the weights leave no memory for one sequence.
    """
    share = asked.count / servers
    if server.running(asked.prompt + asked.longest) < 1:
        raise ValueError("no memory for one sequence")
    batch = min(max(1.0, server.running(asked.context)), share)
    # Nothing is added any more: the running ones go on until the longest has ended. Where all began
    # together all of their tokens are left then; after many waves as many as at any moment.
    together = batch / share
    left = batch * (together * asked.tokens + (1 - together) * asked.remaining)
    seconds = (share * asked.tokens - left) / batch * server.step(batch, asked.context)
    seconds += asked.longest * server.step(left / asked.longest, asked.context)
    return seconds + server.prefill(asked.read / servers)
