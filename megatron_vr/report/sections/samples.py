"""A few traces in full, each token coloured by what it contributes to the importance weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.report.blocks import (
    SHADES,
    Block,
    Missing,
    Section,
    Token,
    Trace,
    TraceCard,
    Words,
)
from megatron_vr.report.questions import Question
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.sampled import Sampled
from megatron_vr.report.shown import Shown, read_shown
from megatron_vr.report.token_probs import (
    LONGEST_TRACE,
    Continued,
    is_affordable,
    pieces,
    token_log_probs,
)
from megatron_vr.report.wording import amount, decimal, nats

FULL_TINT = 3.0  # nats of log π − log q at which the colour is deepest
TIPS_UP_TO = 600  # tokens; in longer traces, neighbours of like colour share an element


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
    shown = read_shown(run, sampler, asked, count)
    prompts = _format(run, sampler)
    ratios, note = _token_ratios(run, sampler, shown, asked, prompts)
    cards: list[Block] = [
        _card(asked[owner], sampler, [one for one in shown if one.owner == owner], ratios, prompts)
        for owner in dict.fromkeys(one.owner for one in shown)
    ]
    intro = f"Traces of the {sampler.name}, not weighed yet."
    if any(one.weight for one in shown):
        intro = (
            f"Traces of the {sampler.name}: of a question, the one that weighs most and the one "
            "that weighs least. Questions are of each band in turn, those with the greatest "
            "contrast first, so these are not typical traces."
        )
    return Section("samples", "Samples", [Words(intro), note, *cards])


def _exports(run: RunFolder, sampler: Sampled) -> tuple[Path | None, Path | None]:
    """The Hugging Face folders of π_{t−1} and of q_t, where they are here."""
    posterior = run.source(sampler.stage, "model")
    policy = run.find("export-policy", sampler.arm, sampler.stage.iteration - 1)
    return _model(policy), _model(posterior)


def _model(export: Stage | None) -> Path | None:
    model = None if export is None else export.path / "model"
    return model if model is not None and model.is_dir() else None


def _format(run: RunFolder, sampler: Sampled) -> PromptFormat | None:
    """The format with the sampler's tokenizer; None where its model is no longer here."""
    _, model = _exports(run, sampler)
    if model is None:
        return None
    prompts = sampler.settings.prompts
    return load_format(prompts.format, load_tokenizer(model), prompts.posterior)


def _token_ratios(
    run: RunFolder,
    sampler: Sampled,
    shown: Sequence[Shown],
    asked: Mapping[str, Question],
    prompts: PromptFormat | None,
) -> tuple[dict[str, list[tuple[float, float]]], Words]:
    """Trace id → (log π, log q) of its tokens, and what the colours mean."""
    policy, posterior = _exports(run, sampler)
    whole = "so only whole traces are marked, by ρ̃ at their left edge."
    if policy is None or posterior is None or prompts is None:
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
    question: Question,
    sampler: Sampled,
    shown: Sequence[Shown],
    ratios: Mapping[str, Sequence[tuple[float, float]]],
    prompts: PromptFormat | None,
) -> TraceCard:
    traces = []
    for one in shown:
        if prompts is None:
            tokens = [Token(one.trace["trace_text"])]
        else:
            cut = list(pieces(prompts.codec, one.trace["trace_ids"]))
            tokens = _tokens(cut, ratios.get(one.trace["trace_id"]))
        weight = min(1.0, one.weight["weight"]) if one.weight else 0.0
        traces.append(Trace(_facts(one), tokens, weight))
    return TraceCard(
        question=question.text,
        hint=question.answer if sampler.hinted else "",
        band=question.band or "",
        traces=traces,
    )


def _facts(one: Shown) -> list[tuple[str, str]]:
    facts = [("length", amount(len(one.trace["trace_ids"]), "token"))]
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
        facts += [("Σ log π", nats(policy)), ("Σ log q", nats(sampled))]
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
        tokens.append(Token(text, tint, f"log π {nats(pi)}, log q {nats(q)}"))
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
