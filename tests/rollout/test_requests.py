from __future__ import annotations

import pytest

from megatron_vr.errors import DataError, SettingsError
from megatron_vr.rollout.batching import BatchLimits, plan_batches
from megatron_vr.rollout.engine import Request, Sampling, check_requests

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=4)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([Request("a", (1,), 0), Request("a", (2,), 1)], "'a' is used more than once"),
        ([Request("a", (), 0)], "'a' has an empty prompt"),
        ([Request("a", (3, 10), 0)], "'a' has token ids from 3 to 10 .* 10 tokens"),
        ([Request("a", (-1,), 0)], "'a' has token ids from -1"),
        ([Request("a", (1,), -5)], "'a' has seed -5"),
        ([Request("a", (1,) * 9, 0)], "'a'.* 9 tokens .* need 13 .* 12; lower .* at most 3"),
        ([Request("a", (1,) * 12, 0)], "'a'.* shorten or drop the prompt"),
    ],
)
def test_a_request_the_model_cannot_take_is_refused_by_name(
    requests: list[Request], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_requests(requests, SAMPLING, context_length=12, vocab_size=10)


def test_a_request_that_just_fits_is_taken() -> None:
    check_requests([Request("a", (9,) * 8, 2**64 - 1)], SAMPLING, context_length=12, vocab_size=10)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("max_new_tokens", 0),
        ("stop_sequences", ((1,), ())),
    ],
)
def test_a_sampling_setting_out_of_range_is_named(setting: str, value: object) -> None:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4, setting: value}
    with pytest.raises(SettingsError, match=setting):
        Sampling(**settings)  # type: ignore[arg-type]


def test_batches_hold_every_request_once_within_both_limits() -> None:
    requests = [Request(str(i), (i % 3,) * (1 + i * 7 % 11), 0) for i in range(40)]
    limits = BatchLimits(rows=6, tokens=50)
    batches = plan_batches(requests, 4, limits)
    assert sorted(index for batch in batches for index in batch) == list(range(40))
    for batch in batches:
        longest = max(len(requests[i].prompt_ids) for i in batch) + 4
        assert len(batch) <= limits.rows
        assert len(batch) * longest <= limits.tokens


def test_a_request_longer_than_the_token_limit_has_a_batch_of_its_own() -> None:
    requests = [Request("long", (1,) * 30, 0), Request("a", (1,), 0), Request("b", (1,), 0)]
    assert plan_batches(requests, 4, BatchLimits(rows=8, tokens=20)) == [[1, 2], [0]]


def test_equal_prompts_come_together() -> None:
    requests = [Request(str(i), (i % 4, 7), 0) for i in range(16)]
    batches = plan_batches(requests, 1, BatchLimits(rows=4))
    assert [len({requests[i].prompt_ids for i in batch}) for batch in batches] == [1, 1, 1, 1]


def test_batch_limits_below_one_are_refused() -> None:
    with pytest.raises(SettingsError, match="batch_size is 0"):
        BatchLimits(rows=0)
