"""A training step against Hugging Face + AdamW: same model, threads and batch, on one process.

    python -m tools.bench.train_step

Equal lengths compare the step itself. Unequal lengths (log-normal, as traces have) compare useful
tokens per second: a padded batch there, packs here. HF computes the same loss: a weighted sum of
log-probs of the target tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM

from megatron_vr.config.settings import ModelSettings, OptimizerSettings, TrainSettings
from megatron_vr.parallel.layout import Layout
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.feed import Feed
from megatron_vr.training.job import TrainJob
from megatron_vr.training.optimizer import build_optimizer
from megatron_vr.training.update import update, wrap_models
from tools.bench.harness import Result, form_groups, load_model, ratio, show, write_model

SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 16384,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
EQUAL = [256] * 8


def log_normal(count: int, mean: float, longest: int) -> list[int]:
    """Lengths of traces: log-normal, their mean and bound scaled down from 6k and 32k tokens."""
    draws = np.random.default_rng(0).lognormal(np.log(mean) - 0.32, 0.8, 20 * count).astype(int)
    return draws[(draws > 8) & (draws <= longest)][:count].tolist()


def rows(lengths: list[int]) -> list[dict[str, Any]]:
    """Examples of these lengths and unequal weights; an eighth of each is prompt."""
    generator = np.random.default_rng(1)
    return [
        {
            "example_id": str(index),
            "problem_id": str(index),
            "origin": "reference",
            "token_ids": generator.integers(0, SHAPE["vocab_size"], length).tolist(),
            "target_start": max(1, length // 8),
            "weight": float(generator.uniform(0.1, 1.0)),
        }
        for index, length in enumerate(lengths)
    ]


class Ours:
    """One update of all examples, as the trainer does it."""

    def __init__(self, folder: Path, examples: list[dict[str, Any]], budget: int) -> None:
        settings = TrainSettings(steps=10**6, batch_size=len(examples), micro_batch_tokens=budget)
        self.job = TrainJob(
            examples=pa.Table.from_pylist(examples, EXAMPLES),
            start_model=folder,
            folder=folder,
            settings=settings,
            model=ModelSettings(path=str(folder)),
            layout=Layout(),
            seed=1,
            name="bench",
        )
        models = load_model(folder)
        self.models = wrap_models(models)
        self.optimizer = build_optimizer(self.models, OptimizerSettings(), torch.float32)
        self.feed = Feed.of(self.job.data.table, models[0], budget, share_prompts=False)
        self.step = 0

    def __call__(self) -> None:
        fed = self.feed.weighted(self.job.plan().batch(self.step))
        update(self.models, self.optimizer, fed.batches, self.job.plan().normaliser, 1.0)
        self.step += 1


class Theirs:
    """The same update in a plain loop over padded batches of `size` sequences."""

    def __init__(self, folder: Path, examples: list[dict[str, Any]], size: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True
        )
        self.batches = [
            self._padded(examples[start : start + size]) for start in range(0, len(examples), size)
        ]
        self.total = sum(
            row["weight"] * (len(row["token_ids"]) - row["target_start"]) for row in examples
        )

    def _padded(self, examples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
        longest = max(len(row["token_ids"]) for row in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        seen = torch.zeros_like(ids)
        weights = torch.zeros(len(examples), longest)
        for index, row in enumerate(examples):
            length = len(row["token_ids"])
            ids[index, :length] = torch.tensor(row["token_ids"])
            seen[index, :length] = 1
            weights[index, row["target_start"] : length] = row["weight"]
        return ids, seen, weights

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for ids, seen, weights in self.batches:
            mask = None if bool(seen.all()) else seen
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            ((losses * weights[:, 1:].flatten()).sum() / self.total).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    form_groups()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name), SHAPE)
        equal = rows(EQUAL)
        ours, theirs = ratio(Ours(folder, equal, 1024), Theirs(folder, equal, 4), options.rounds)
        detail = f"{ours:.2f} s against {theirs:.2f} s"
        results.append(Result("step time, equal lengths", ours / theirs, "≤ 1.05", detail))
        lengths = log_normal(24, mean=120, longest=640)
        unequal = rows(lengths)
        for size, goal in ((8, "≥ 2"), (1, "")):
            ours, theirs = ratio(
                Ours(folder, unequal, 2048), Theirs(folder, unequal, size), options.rounds
            )
            detail = f"{sum(lengths) / ours:.0f} against {sum(lengths) / theirs:.0f} tokens/s"
            name = f"useful tokens/s, unequal lengths, HF batch {size}"
            results.append(Result(name, theirs / ours, goal, detail))
    show(f"training step, {torch.get_num_threads()} threads", results, options.json)


if __name__ == "__main__":
    main()
