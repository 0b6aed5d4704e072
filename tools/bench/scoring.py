"""The scoring pass against Hugging Face at batch size 1, one trace after the other.

    python -m tools.bench.scoring

K traces of each question, of log-normal lengths, after the question's prompt; wanted are the
log-probs of the traces' tokens. HF computes the logits of every position of one sequence at a
time, as scripts that score with a causal model do. Both give the same sums: it is checked.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from megatron_vr.training.scoring import Sequenced, score
from tools.bench.harness import Result, form_groups, load_model, ratio, show, write_model

PER_QUESTION = 8
# The demo's model, and one of 40 million parameters; prompt and mean trace, in tokens.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "toy model, prompts of 32, traces of 24": (
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 544,
            "vocab_size": 64,
        },
        32,
        24,
    ),
    "40 M parameters, prompts of 64, traces of 64": (
        {
            "hidden_size": 384,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 1152,
            "vocab_size": 32768,
        },
        64,
        64,
    ),
}


def sequences(questions: int, prompt: int, mean: int, vocabulary: int) -> list[Sequenced]:
    """PER_QUESTION traces after each of `questions` prompts."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(questions):
        start = generator.integers(0, vocabulary, prompt)
        for _ in range(PER_QUESTION):
            length = int(np.clip(generator.lognormal(np.log(mean) - 0.32, 0.8), 4, 6 * mean))
            trace = generator.integers(0, vocabulary, length)
            found.append(Sequenced(np.concatenate((start, trace)), ((prompt, prompt + length),)))
    return found


def one_by_one(model: Any, wanted: list[Sequenced]) -> list[float]:
    """Σ log p of each trace, by a batch of one sequence at a time."""
    sums = []
    with torch.no_grad():
        for sequence in wanted:
            ids = torch.from_numpy(np.asarray(sequence.token_ids))[None]
            log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
            of_tokens = log_probs.gather(1, ids[0, 1:, None])[:, 0]
            ((first, last),) = sequence.spans
            sums.append(float(of_tokens[first - 1 : last - 1].double().sum()))
    return sums


def compare(name: str, folder: Path, wanted: list[Sequenced], rounds: int) -> Result:
    """The speed of our pass over HF's, on the same sequences."""
    models = load_model(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ours() -> list[float]:
        return [found.sums[0] for found in score(models, wanted, 4096, share_prompts=True)]

    def theirs() -> list[float]:
        return one_by_one(reference, wanted)

    np.testing.assert_allclose(ours(), theirs(), atol=2e-3)
    mine, other = ratio(ours, theirs, rounds)
    tokens = sum(sequence.wanted for sequence in wanted)
    detail = f"{tokens / mine:.0f} against {tokens / other:.0f} trace tokens/s"
    return Result(name, other / mine, "≥ 3", detail)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured passes of each")
    parser.add_argument("--questions", type=int, default=32, help="questions of 8 traces")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    form_groups()
    results = []
    for name, (shape, prompt, mean) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            written = write_model(Path(folder), shape)
            wanted = sequences(options.questions, prompt, mean, shape["vocab_size"])
            results.append(compare(name, written, wanted, options.rounds))
    show(f"scoring, {torch.get_num_threads()} threads", results, options.json)


if __name__ == "__main__":
    main()
