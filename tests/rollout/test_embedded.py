from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_vr.errors import CheckpointError, DataError, StageError
from megatron_vr.rollout.batching import BatchLimits
from megatron_vr.rollout.embedded import EmbeddedEngine
from megatron_vr.rollout.engine import Completion, Request, Sampling
from megatron_vr.rollout.seeds import seed_for

Reference = Callable[[PreTrainedModel, tuple[int, ...]], Tensor]

PLAIN = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=12)


def _requests(prompts: int, each: int) -> list[Request]:
    """Prompts of 1 to 9 tokens, each asked `each` times with seeds of its own."""
    chance = random.Random(0)
    texts = [
        tuple(chance.randrange(31) for _ in range(chance.randint(1, 9))) for _ in range(prompts)
    ]
    return [
        Request(f"{p}/{k}", text, seed_for(0, p, k))
        for p, text in enumerate(texts)
        for k in range(each)
    ]


def _tokens(completions: list[Completion]) -> dict[str, tuple[int, ...]]:
    return {completion.id: completion.token_ids for completion in completions}


def _chi_square_p_value(observed: list[float], expected: list[float]) -> float:
    """Pearson's test: P(chi-square with len - 1 degrees of freedom > the statistic)."""
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    freedom = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))


def _one(model: PreTrainedModel, sampling: Sampling) -> Completion:
    return EmbeddedEngine(model).generate([Request("a", (3, 1, 4), 1)], sampling)[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_reported_log_probs_are_the_models_own_at_temperature_one(
    any_model: PreTrainedModel, reference_log_probs: Reference, temperature: float
) -> None:
    sampling = replace(PLAIN, temperature=temperature, top_p=0.9, stop_token_ids=(5,))
    requests = _requests(prompts=12, each=2)
    completions = EmbeddedEngine(any_model).generate(requests, sampling)
    for request, completion in zip(requests, completions, strict=True):
        ids = request.prompt_ids + completion.token_ids
        reference = reference_log_probs(any_model, ids)
        expected = [
            reference[len(request.prompt_ids) - 1 + t, token]
            for t, token in enumerate(completion.token_ids)
        ]
        torch.testing.assert_close(
            torch.tensor(completion.log_probs, dtype=torch.float64),
            torch.stack(expected),
            atol=1e-4,
            rtol=0,
            msg=lambda text, name=request.id: f"request {name}: {text}",
        )


def test_greedy_takes_the_most_likely_token_of_a_full_forward(
    any_model: PreTrainedModel, reference_log_probs: Reference
) -> None:
    requests = _requests(prompts=10, each=1)
    for request, completion in zip(
        requests, EmbeddedEngine(any_model).generate(requests, GREEDY), strict=True
    ):
        ids = request.prompt_ids
        for _ in range(GREEDY.max_new_tokens):
            ids += (int(reference_log_probs(any_model, ids)[-1].argmax()),)
        assert completion.token_ids == ids[len(request.prompt_ids) :], request.id


def test_a_completion_does_not_depend_on_its_batch_or_its_place(
    any_model: PreTrainedModel,
) -> None:
    sampling = replace(PLAIN, temperature=0.9, stop_token_ids=(5, 6))
    requests = _requests(prompts=20, each=4)
    engine = EmbeddedEngine(any_model)
    together = _tokens(engine.generate(requests, sampling))
    some = requests[::4]
    alone = _tokens([engine.generate([request], sampling)[0] for request in some])
    assert alone == {request.id: together[request.id] for request in some}

    shuffled = random.Random(1).sample(requests, len(requests))
    assert _tokens(engine.generate(shuffled, sampling)) == together

    for limits in (BatchLimits(rows=7), BatchLimits(tokens=60)):
        small = _tokens(EmbeddedEngine(any_model, limits).generate(requests, sampling))
        assert small == together, limits


def test_completions_come_in_the_order_of_the_requests(model: PreTrainedModel) -> None:
    requests = _requests(prompts=9, each=3)
    completions = EmbeddedEngine(model, BatchLimits(rows=5)).generate(requests, PLAIN)
    assert [c.id for c in completions] == [r.id for r in requests]


def test_seeds_decide_what_is_sampled(model: PreTrainedModel) -> None:
    requests = [Request(str(k), (1, 2, 3), seed_for(0, k)) for k in range(50)]
    first = EmbeddedEngine(model).generate(requests, PLAIN)
    assert len({c.token_ids for c in first}) > 25, "different seeds gave the same completions"
    reseeded = [replace(r, seed=seed_for(1, r.id)) for r in requests]
    assert first != EmbeddedEngine(model).generate(reseeded, PLAIN)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_sampled_frequencies_follow_the_models_distribution(
    model: PreTrainedModel, reference_log_probs: Reference, temperature: float, top_p: float
) -> None:
    prompt, draws = (3, 1, 4), 6_000
    requests = [Request(str(k), prompt, seed_for(0, k)) for k in range(draws)]
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=1)
    sampled = [c.token_ids[0] for c in EmbeddedEngine(model).generate(requests, sampling)]
    counts = torch.bincount(torch.tensor(sampled), minlength=31).double()

    probs = (reference_log_probs(model, prompt)[-1] / temperature).softmax(dim=-1)
    ranked = sorted(range(31), key=lambda token: -float(probs[token]))
    mass, nucleus = 0.0, []
    for token in ranked:
        if mass < top_p:
            nucleus.append(token)
            mass += float(probs[token])
    outside = [token for token in ranked if token not in nucleus]
    assert counts[outside].sum() == 0, f"tokens outside the nucleus {nucleus} were sampled"

    common = [token for token in nucleus if probs[token] / mass * draws >= 5]
    rare = [token for token in nucleus if token not in common]
    observed = [*counts[common].tolist(), counts[rare].sum().item()]
    expected = [*(probs[common] / mass * draws).tolist(), (probs[rare] / mass * draws).sum().item()]
    keep = len(observed) if expected[-1] > 0 else len(observed) - 1
    p_value = _chi_square_p_value(observed[:keep], expected[:keep])
    assert p_value > 1e-3, f"observed {observed}, expected {expected}"


def test_a_low_top_p_is_greedy(model: PreTrainedModel) -> None:
    requests = _requests(prompts=6, each=2)
    engine = EmbeddedEngine(model)
    nearly_zero = engine.generate(requests, replace(PLAIN, top_p=1e-9))
    assert _tokens(nearly_zero) == _tokens(engine.generate(requests, GREEDY))


@dataclass(frozen=True)
class _PairMarker:
    """Complete when the last two tokens are `pair`."""

    pair: tuple[int, int]
    text: str = "<end>"
    max_tail: int = 2

    def completes(self, tail_ids: tuple[int, ...] | list[int]) -> bool:
        assert len(tail_ids) <= self.max_tail, "more tokens than the marker asked to look at"
        return tuple(tail_ids[-2:]) == self.pair


def test_a_completed_marker_ends_the_completion_and_is_kept(model: PreTrainedModel) -> None:
    free = _one(model, PLAIN)
    marker = _PairMarker((free.token_ids[4], free.token_ids[5]))
    stopped = _one(model, replace(PLAIN, stop=marker))
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[:6]
    assert stopped.log_probs == pytest.approx(free.log_probs[:6])


def test_a_stop_sequence_of_several_tokens_ends_only_when_complete(model: PreTrainedModel) -> None:
    free = _one(model, PLAIN).token_ids
    stopped = _one(model, replace(PLAIN, stop_sequences=((30, 30, 30), free[3:7])))
    assert (stopped.token_ids, stopped.finish_reason) == (free[:7], "stop")


def test_a_stop_sequence_is_not_completed_by_the_prompt(model: PreTrainedModel) -> None:
    free = _one(model, PLAIN).token_ids
    across = _one(model, replace(PLAIN, stop_sequences=((4, free[0]),)))
    assert (across.token_ids, across.finish_reason) == (free, "length")


def test_a_stop_token_ends_the_completion_and_is_kept(model: PreTrainedModel) -> None:
    free = _one(model, PLAIN).token_ids
    ended = _one(model, replace(PLAIN, stop_token_ids=(free[5],)))
    first = free.index(free[5]) + 1
    assert (ended.token_ids, ended.finish_reason) == (free[:first], "end")


def test_the_limit_ends_with_length_unless_its_last_token_completes_the_marker(
    model: PreTrainedModel,
) -> None:
    free = _one(model, PLAIN)
    assert (len(free.token_ids), free.finish_reason) == (12, "length")
    exact = replace(PLAIN, max_new_tokens=6, stop_sequences=(free.token_ids[4:6],))
    assert _one(model, exact).finish_reason == "stop"


def test_progress_adds_up_to_the_number_of_requests(model: PreTrainedModel) -> None:
    counts: list[int] = []
    requests = _requests(prompts=10, each=3)
    sampling = replace(PLAIN, stop_token_ids=(5, 6, 7))
    EmbeddedEngine(model, BatchLimits(rows=8)).generate(requests, sampling, counts.append)
    assert sum(counts) == len(requests)
    assert min(counts) > 0


def test_a_prompt_that_leaves_too_little_room_is_refused(model: PreTrainedModel) -> None:
    request = Request("q17/3", tuple(range(31)) + (0,) * 9, 0)
    with pytest.raises(DataError, match=r"q17/3.*40.*context is 48.*max_new_tokens to at most 8"):
        EmbeddedEngine(model).generate([request], PLAIN)
    fits = EmbeddedEngine(model).generate([request], replace(PLAIN, max_new_tokens=8))
    assert len(fits[0].token_ids) == 8


def test_no_requests_give_no_completions(model: PreTrainedModel) -> None:
    assert EmbeddedEngine(model).generate([], PLAIN) == []


def test_an_engine_loads_a_saved_folder_and_samples_the_same(
    any_model: PreTrainedModel, tmp_path: Path
) -> None:
    any_model.save_pretrained(tmp_path)
    requests = _requests(prompts=4, each=2)
    with EmbeddedEngine.load(tmp_path, device="cpu") as engine:
        assert engine.generate(requests, PLAIN) == EmbeddedEngine(any_model).generate(
            requests, PLAIN
        )
    with pytest.raises(StageError, match="closed"):
        engine.generate(requests, PLAIN)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        EmbeddedEngine.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        EmbeddedEngine.load(tmp_path)


def test_broken_weights_are_reported_with_the_request(model: PreTrainedModel) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[4] = float("nan")
    requests = [Request("good", (1, 2), 0), Request("bad", (4, 4), 0)]
    with pytest.raises(CheckpointError, match="nan"):
        EmbeddedEngine(broken).generate(requests, PLAIN)
