"""A few traces in full, each token coloured by what it contributes to the importance weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.report.blocks import SHADES, Block, Missing, Section, Token, TraceCard, Words
from megatron_vr.report.questions import Question
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.sampled import Sampled, made_from
from megatron_vr.report.token_probs import (
    LONGEST_TRACE,
    Continued,
    is_affordable,
    pieces,
    token_log_probs,
)
from megatron_vr.report.wording import decimal
from megatron_vr.traces.tables import SCORES, TRACES, WEIGHTS

FULL_TINT = 3.0  # nats of log π − log q at which the colour is deepest
TIPS_UP_TO = 600  # tokens; in longer traces, neighbours of like colour share an element


@dataclass(frozen=True)
class Shown:
    """One chosen trace: its row of each table, where there is one."""

    trace: Mapping[str, Any]
    weight: Mapping[str, Any] | None
    score: Mapping[str, Any] | None


def samples_section(
    run: RunFolder, sampled: Mapping[int, Sequence[Sampled]], asked: Mapping[str, Question]
) -> Section:
    """Traces of the newest posterior: of each chosen question its heaviest and its lightest."""
    posteriors = [s for t in run.iterations for s in sampled[t] if not s.of_policy and s.ids]
    count = run.settings.report.sample_traces
    if not posteriors or not count or not asked:
        why = "report.sample_traces is 0." if not count else "No traces are sampled yet."
        return Section("samples", "Samples", [Missing(why)])
    newest = max(s.stage.iteration for s in posteriors)
    sampler = next(s for s in posteriors if s.stage.iteration == newest)
    shown = choose(run, sampler, asked, count)
    ratios, note = _token_ratios(run, sampler, shown, asked)
    codec = _codec(run, sampler)
    cards: list[Block] = [
        _card(
            one, asked[one.trace["problem_id"]], sampler, ratios.get(one.trace["trace_id"]), codec
        )
        for one in shown
    ]
    intro = (
        f"Traces of the {sampler.name}: of a few questions of each band, the trace that weighs "
        "most and the one that weighs least."
    )
    return Section("samples", "Samples", [Words(intro), note, *cards])


def choose(
    run: RunFolder, sampler: Sampled, asked: Mapping[str, Question], count: int
) -> list[Shown]:
    """`count` traces in pairs (most and least weight of a question), bands in turn.

    Questions whose traces differ most in weight come first; ties fall to the earlier question.
    """
    weigh = made_from(run, "weigh", sampler.stage)
    weights = {row["trace_id"]: row for row in weigh.rows(WEIGHTS, WEIGHTS.names)} if weigh else {}
    by_question: dict[str, list[str]] = {}
    for name, owner in zip(sampler.ids, sampler.owners, strict=True):
        by_question.setdefault(owner, []).append(name)

    def weight(name: str) -> float:
        return float(weights[name]["weight"]) if name in weights else 0.0

    def contrast(owner: str) -> float:
        own = [weight(name) for name in by_question[owner]]
        return max(own) - min(own)

    queues: dict[str | None, list[str]] = {}
    for owner in sorted(by_question, key=contrast, reverse=True):
        queues.setdefault(asked[owner].band, []).append(owner)
    names: list[str] = []
    while len(names) < count and any(queues.values()):
        for band in list(dict.fromkeys(question.band for question in asked.values())):
            if queues.get(band) and len(names) < count:
                own = sorted(by_question[queues[band].pop(0)], key=weight, reverse=True)
                names += list(dict.fromkeys([own[0], own[-1]]))
    names = names[:count]
    traces = _rows(sampler.stage, TRACES, names)
    scored = made_from(run, "score", sampler.stage)
    scores = _rows(scored, SCORES, names) if scored else {}
    return [Shown(traces[name], weights.get(name), scores.get(name)) for name in names]


def _rows(stage: Stage, schema: pa.Schema, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    wanted = pa.array(names, pa.string())
    found = {}
    for table in stage.tables(schema, schema.names):
        for row in table.filter(pc.is_in(table.column("trace_id"), wanted)).to_pylist():
            found[row["trace_id"]] = row
    return found


def _exports(run: RunFolder, sampler: Sampled) -> tuple[Path | None, Path | None]:
    """The Hugging Face folders of π_{t−1} and of q_t."""
    posterior = run.source(sampler.stage, "model")
    policy = run.find("export-policy", sampler.arm, sampler.stage.iteration - 1)
    return (policy and policy.path / "model", posterior and posterior.path / "model")


def _codec(run: RunFolder, sampler: Sampled) -> PromptFormat | None:
    """The format with the sampler's tokenizer; None where its model is no longer here."""
    _, model = _exports(run, sampler)
    if model is None or not model.exists():
        return None
    prompts = sampler.settings.prompts
    return load_format(prompts.format, load_tokenizer(model), prompts.posterior)


def _token_ratios(
    run: RunFolder, sampler: Sampled, shown: Sequence[Shown], asked: Mapping[str, Question]
) -> tuple[dict[str, list[tuple[float, float]]], Words]:
    """Trace id → (log π, log q) of its tokens, and what the colours mean."""
    policy, posterior = _exports(run, sampler)
    prompts = _codec(run, sampler)
    whole = "so only whole traces are marked, by ρ̃ at their left edge."
    if policy is None or posterior is None or prompts is None or not policy.exists():
        return {}, Words(f"The exported models are not in this folder, {whole}", "quiet")
    if not is_affordable(policy) or not is_affordable(posterior):
        return {}, Words(f"The models are too large to be run for a page, {whole}", "quiet")
    short = [one.trace for one in shown if 0 < len(one.trace["trace_ids"]) <= LONGEST_TRACE]
    under_q = [Continued(trace["prompt_ids"], trace["trace_ids"]) for trace in short]
    under_policy = [
        Continued(prompts.policy_prompt(asked[trace["problem_id"]].text), trace["trace_ids"])
        for trace in short
    ]
    pairs = zip(
        token_log_probs(policy, under_policy), token_log_probs(posterior, under_q), strict=True
    )
    found = {
        trace["trace_id"]: list(zip(pi, q, strict=True))
        for trace, (pi, q) in zip(short, pairs, strict=True)
    }
    legend = (
        "Colour is log π(token) − log q(token): blue tokens are likelier without the hint, orange "
        "ones are the hint's doing. Point at a token for its numbers."
    )
    return found, Words(legend, "quiet")


def _card(
    one: Shown,
    question: Question,
    sampler: Sampled,
    ratios: Sequence[tuple[float, float]] | None,
    prompts: PromptFormat | None,
) -> TraceCard:
    ids = one.trace["trace_ids"]
    if prompts is None:
        tokens = [Token(one.trace["trace_text"])]
    else:
        tokens = _tokens(list(pieces(prompts.codec, ids)), ratios)
    return TraceCard(
        question=question.text,
        hint=question.answer if sampler.hinted else "",
        facts=_facts(one),
        tokens=tokens,
        weight=min(1.0, one.weight["weight"]) if one.weight else 0.0,
        band=question.band or "",
    )


def _facts(one: Shown) -> list[tuple[str, str]]:
    facts = [("length", f"{len(one.trace['trace_ids']):,} tokens")]
    if one.weight is None:
        facts.append(("weight", "not weighed yet"))
    else:
        facts = [
            ("weight ρ̃", decimal(one.weight["weight"])),
            ("accuracy", decimal(one.weight["accuracy"])),
            *facts,
            ("learned", "yes" if one.weight["chosen"] else f"no: {one.weight['why']}"),
        ]
    if one.score is not None:
        policy, sampled = one.score["policy_log_prob"], one.score["sampler_log_prob"]
        facts += [("Σ log π", f"{policy:.2f}"), ("Σ log q", f"{sampled:.2f}")]
    return facts


def _tokens(
    cut: Sequence[tuple[str, int]], ratios: Sequence[tuple[float, float]] | None
) -> list[Token]:
    if ratios is None:
        return [Token("".join(text for text, _ in cut))]
    tokens: list[Token] = []
    place = 0
    for text, count in cut:
        pi = sum(pair[0] for pair in ratios[place : place + count])
        q = sum(pair[1] for pair in ratios[place : place + count])
        tint = max(-1.0, min(1.0, (pi - q) / FULL_TINT))
        tokens.append(Token(text, tint, f"log π {pi:.2f}, log q {q:.2f}"))
        place += count
    return tokens if len(tokens) <= TIPS_UP_TO else _merged(tokens)


def _merged(tokens: Sequence[Token]) -> list[Token]:
    merged: list[Token] = []
    for token in tokens:
        tint = round((token.tint or 0.0) * SHADES) / SHADES
        if merged and merged[-1].tint == tint:
            merged[-1] = Token(merged[-1].text + token.text, tint)
        else:
            merged.append(Token(token.text, tint))
    return merged
