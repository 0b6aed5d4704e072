"""What both real servers do alike behind the one protocol, however their APIs differ."""

from __future__ import annotations

import string
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from megatron_vr.errors import DataError, StageError
from megatron_vr.problems.markers import Marker, token_bytes
from megatron_vr.rollout.engine import Completion, Engine, Request, Sampling
from megatron_vr.rollout.servers.engine import ServedEngine
from megatron_vr.rollout.servers.faults import Mismatch
from tests.convert.small_release import byte_tokenizer
from tests.servers.engines import open_servers, probe_of
from tests.servers.models import CONTEXT, VOCABULARY, byte_model, next_log_probs
from tests.servers.proxy import FaultyProxy, edit
from tests.servers.running import RunningServer

PLAIN = Sampling(temperature=1.0, max_new_tokens=24)
GREEDY = Sampling(temperature=0.0, max_new_tokens=40)
EOS = 0


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture(scope="module")
def engine(server: RunningServer) -> Iterator[ServedEngine]:
    with open_servers(server.kind, [server.url], server.model) as engine:
        yield engine


def _requests(count: int, *prompt: int, first_seed: int = 0) -> list[Request]:
    return [Request(f"r{i}", prompt or (5, 6, 7), first_seed + i) for i in range(count)]


def _worst_gap(model: Path, request: Request, completion: Completion) -> float:
    ids = (*request.prompt_ids, *completion.token_ids)
    start = len(request.prompt_ids)
    told = torch.tensor(completion.log_probs, dtype=torch.float64)
    table = next_log_probs(model, ids)[start - 1 : -1]
    own = table.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    return float((told - own).abs().max())


def _greedy(model: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(next_log_probs(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.0, 0.8), (1.7, 1.0)])
def test_log_probs_are_those_of_temperature_one_whatever_was_sampled(
    engine: Engine, server: RunningServer, temperature: float, top_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=32)
    requests = _requests(6, 9, 8, 7, 6)
    for request, completion in zip(requests, engine.generate(requests, sampling), strict=True):
        assert _worst_gap(server.model, request, completion) < 1e-4, (
            f"{completion.id} at temperature {temperature}, top_p {top_p} has other log-probs "
            "than Transformers in fp32"
        )


def test_samples_follow_the_model_and_not_its_generation_config(
    engine: Engine, server: RunningServer
) -> None:
    """Its top_k 3, top_p 0.5, temperature and penalty would show in the first token already."""
    prompt, draws = (11, 5, 77), 3000
    one = Sampling(temperature=0.8, max_new_tokens=1)
    drawn = [c.token_ids[0] for c in engine.generate(_requests(draws, *prompt), one)]
    expected = (next_log_probs(server.model, prompt)[-1] / 0.8).softmax(0) * draws
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY).double()
    likely = expected >= 5
    observed = [*counts[likely].tolist(), float(counts[~likely].sum())]
    wanted = [*expected[likely].tolist(), float(expected[~likely].sum())]
    assert chisquare(observed, wanted).pvalue > 1e-6, f"{draws} first tokens: {observed}, {wanted}"


def test_greedy_is_the_models_most_likely_continuation(
    engine: Engine, server: RunningServer
) -> None:
    [completion] = engine.generate(_requests(1, 40, 41, 42), GREEDY)
    assert list(completion.token_ids) == _greedy(server.model, (40, 41, 42), 40)


def test_each_of_n_samples_of_one_prompt_comes_back_under_its_own_id(engine: Engine) -> None:
    requests = _requests(8, 50, 51, 52, 53)
    found = engine.generate(requests, PLAIN)
    assert [completion.id for completion in found] == [request.id for request in requests]
    assert len({completion.token_ids for completion in found}) == 8


def test_samples_of_one_prompt_share_its_cache(server: RunningServer) -> None:
    """As the answers to a trace do, whose own ids are their prefix."""
    cached: list[int] = []

    def note(answer: Any) -> None:
        cached.append(answer.get("meta_info", {}).get("cached_tokens", 0))

    before = _prefix_hits(server)
    with (
        FaultyProxy(server.url, lambda number, body: edit(note)) as proxy,
        open_servers(server.kind, [proxy.url], server.model) as engine,
    ):
        engine.generate(_requests(8, *range(3, 203)), PLAIN)
    hits = sum(cached) if server.kind == "sglang" else _prefix_hits(server) - before
    # vLLM's blocks have 128 tokens on a CPU.
    assert hits >= 7 * 128, f"of 8 prompts of 200 equal tokens only {hits} tokens were cached"


def _prefix_hits(server: RunningServer) -> int:
    """Tokens that vLLM found in its prefix cache, by its own count."""
    if server.kind == "sglang":
        return 0
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    own = [line for line in lines if line.startswith("vllm:prefix_cache_hits_total")]
    return int(sum(float(line.split()[-1]) for line in own))


def test_seeds_repeat_samples_where_the_server_honours_them_and_it_is_said_where_not(
    server: RunningServer,
) -> None:
    said: list[str] = []
    with open_servers(server.kind, [server.url], server.model, say=said.append) as engine:
        first = engine.generate(_requests(8, first_seed=2**62), PLAIN)
        again = engine.generate(_requests(8, first_seed=2**62)[::-1], PLAIN)[::-1]
    repeated = [c.token_ids for c in first] == [c.token_ids for c in again]
    assert repeated == (server.kind == "vllm")
    assert any("ignores seeds" in line for line in said) == (not repeated)


def test_a_marker_ends_the_completion_with_its_tokens_and_nothing_more(
    engine: Engine, server: RunningServer
) -> None:
    table = token_bytes(byte_tokenizer())
    letters = set(string.ascii_letters + string.digits + string.punctuation)
    for prompt in ((seed, seed + 1, seed + 2) for seed in range(20, 200, 3)):
        whole = _greedy(server.model, prompt, 40)
        text = b"".join(table[token] or b"\xff" for token in whole).decode("latin-1")
        ends = [i for i in range(6, 38) if len(set(text[i : i + 2]) & letters) == 2]
        if ends:
            break
    else:
        pytest.fail("no greedy continuation of this model has two printable bytes in a row")
    marker = Marker(text[ends[0] : ends[0] + 2], table)
    expected = marker.first_end(whole)
    sampling = Sampling(temperature=0.0, max_new_tokens=40, stop=marker)
    [completion] = engine.generate(_requests(1, *prompt), sampling)
    assert (list(completion.token_ids), completion.finish_reason) == (whole[:expected], "stop")
    assert len(completion.log_probs) == expected


def test_a_stop_token_ends_the_completion_and_is_kept(
    engine: Engine, server: RunningServer
) -> None:
    whole = _greedy(server.model, (60, 61), 20)
    stop = whole[9]
    sampling = Sampling(temperature=0.0, max_new_tokens=20, stop_token_ids=(stop,))
    [completion] = engine.generate(_requests(1, 60, 61), sampling)
    expected = whole[: whole.index(stop) + 1]
    assert (list(completion.token_ids), completion.finish_reason) == (expected, "end")


@pytest.mark.parametrize("stops", [(), (VOCABULARY - 1,)])
def test_the_models_own_end_token_ends_nothing_unless_it_is_asked_to(
    engine: Engine, server: RunningServer, stops: tuple[int, ...]
) -> None:
    """SGLang cannot be told both: there the generation is taken up again."""
    sampling = Sampling(temperature=1.0, max_new_tokens=300, stop_token_ids=stops)
    requests = _requests(12, 3, 4)
    found = engine.generate(requests, sampling)
    through = [c for c in found if EOS in c.token_ids[:-1]]
    assert through, "in 12 samples of up to 300 tokens the end token should come somewhere"
    for completion in found:
        ended = completion.token_ids[-1] in stops
        assert ended or len(completion.token_ids) == 300, f"{completion.id} ended early"
    request = next(r for r in requests if r.id == through[0].id)
    assert _worst_gap(server.model, request, through[0]) < 1e-4


def test_the_limit_ends_with_length_also_where_it_fills_the_context(engine: ServedEngine) -> None:
    """SGLang needs a few positions for itself; both are asked for all that they have."""
    assert CONTEXT - 8 < engine.context_length <= CONTEXT
    request = Request("r", (7,) * (engine.context_length - 21), 1)
    sampling = Sampling(temperature=1.0, max_new_tokens=21)
    [completion] = engine.generate([request], sampling)
    assert (len(completion.token_ids), completion.finish_reason) == (21, "length")


def test_a_prompt_too_long_for_the_server_is_refused_before_it_is_sent(
    server: RunningServer,
) -> None:
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model) as engine,
    ):
        sent = len(proxy.requests)
        with pytest.raises(DataError, match=r"'r': a prompt of 1010 .* need 1034 .* is 10(24|18)"):
            engine.generate([Request("r", (7,) * 1010, 1)], PLAIN)
        with pytest.raises(DataError, match="'r' has token ids from 999"):
            engine.generate([Request("r", (999,), 1)], PLAIN)
        assert len(proxy.requests) == sent


def test_another_model_than_the_server_can_run_is_refused_and_the_server_lives_on(
    engine: Engine, server: RunningServer, tmp_path: Path
) -> None:
    other = byte_model(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(Mismatch, match="num_hidden_layers 2 instead of 1"):
        open_servers(server.kind, [server.url], other)
    assert engine.generate(_requests(1), PLAIN)


def test_a_server_off_the_trainers_probe_is_refused(server: RunningServer, tmp_path: Path) -> None:
    probe = probe_of(server.model, tuple(range(5, 60)), (9, 9, 9))
    with open_servers(server.kind, [server.url], server.model, probe=probe):
        pass
    stranger = probe_of(byte_model(tmp_path / "stranger", seed=5), tuple(range(5, 60)))
    with pytest.raises(Mismatch, match=r"nats per token from the trainer's, more than"):
        open_servers(server.kind, [server.url], server.model, probe=stranger)


def test_a_server_that_gives_tempered_log_probs_is_refused_with_advice(
    server: RunningServer,
) -> None:
    def halve(answer: dict) -> dict:
        for choice in answer.get("choices", []):
            if choice["logprobs"]:
                told = choice["logprobs"]["token_logprobs"]
                choice["logprobs"]["token_logprobs"] = [value / 2 for value in told]
        rows = answer.get("meta_info", {}).get("output_token_logprobs", [])
        for row in rows:
            row[0] /= 2
        return answer

    advice = {"vllm": "raw_logprobs", "sglang": "SGLANG_RETURN_ORIGINAL_LOGPROB"}[server.kind]
    with (
        FaultyProxy(server.url, lambda number, body: edit(halve)) as proxy,
        pytest.raises(Mismatch, match=advice),
    ):
        open_servers(server.kind, [proxy.url], server.model)


def test_a_server_that_is_not_there_is_named_after_the_time_to_get_ready(
    server: RunningServer,
) -> None:
    with pytest.raises(StageError, match=r"ready_seconds=1\b(.|\n)*http://127.0.0.1:9: "):
        open_servers(server.kind, ["http://127.0.0.1:9"], server.model, ready_seconds=1)
