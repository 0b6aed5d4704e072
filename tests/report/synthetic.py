"""A run folder as the stages would leave it, its numbers drawn at random and kept for tests."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from megatron_vr.algorithm.plan import Node, Plan, make_plan
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.problems.problem import Problem, to_table
from megatron_vr.problems.sources import load_problems
from megatron_vr.traces.tables import ANSWERS, EXAMPLES, ROLLOUTS, SCORES, TRACES, VERDICTS, WEIGHTS
from tests.report.metrics_lines import metrics_line

SETTINGS = Path(__file__).with_name("synthetic.yaml")
SKILL = {
    "start": 0.35,
    "sft": 0.5,
    "rft": 0.6,
    "rft-per-question": 0.62,
    "variational-no-hint": 0.65,
    "variational": 0.8,
}
BAND = {"easy": 0.15, "mid": 0.0, "hard": -0.2}
OVER_LONG = 25  # tokens; the settings drop traces of more than 19

Rows = list[dict[str, Any]]


@dataclass
class Written:
    """The folder, its settings, and the rows of every table by the stage's path in the folder."""

    folder: Path
    settings: Settings
    rows: dict[str, Rows] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def of(self, place: str) -> Rows:
        """The rows written for the stage at `place`."""
        return self.rows[place]


@dataclass(frozen=True)
class Writer:
    """Fills the folders of a plan's nodes."""

    written: Written
    plan: Plan
    dice: random.Random
    trace_text: Callable[[str], str]
    models: Mapping[str, Path]
    engine_error: float

    def write(self, node: Node) -> None:
        """One stage, finished."""
        node.folder.open()
        make = {
            "problems": self._problems,
            "sft": self._training,
            "posterior": self._training,
            "train": self._training,
            "evaluate": self._evaluate,
            "sample": self._sample,
            "answer": self._answer,
            "score": self._score,
            "weigh": self._weigh,
            "export": self._export,
            "base": lambda node: {},
        }[node.stage]
        summary = make(node)
        node.folder.finish(len(list(node.path.glob("part-*.parquet"))), summary)

    def _keep(self, node: Node, rows: Rows, schema: pa.Schema) -> None:
        """In two parts, as a larger run would."""
        self.written.rows[str(node.path.relative_to(self.written.folder))] = rows
        half = (len(rows) + 1) // 2
        for index, part in enumerate((rows[:half], rows[half:])):
            node.folder.write_part(index, pa.Table.from_pylist(part, schema))

    def _problems(self, node: Node) -> dict[str, Any]:
        which = node.label.removeprefix("problems-")
        problems = self.written.problems[which]
        node.folder.write_part(0, to_table(problems))
        return {"questions": len(problems)}

    def _training(self, node: Node) -> dict[str, Any]:
        lines = [metrics_line(step, self.dice) for step in range(1, 41)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (node.path / "metrics.jsonl").write_text(text, encoding="utf-8")
        node.folder.write_part(0, EXAMPLES.empty_table())
        if "weights" not in node.inputs:
            return {"examples": 12}
        counts = {"questions": 40, "with_correct_trace": 34, "fallen_back": 2, "dropped": 4}
        return {"examples": 100, "origins": {"reference": 12, "posterior": 88}, **counts}

    def _evaluate(self, node: Node) -> dict[str, Any]:
        row = "start" if node.iteration == 0 else node.arm
        rows: Rows = []
        for problem in self.written.problems["test"]:
            chance = min(0.97, max(0.03, SKILL[row] + BAND[str(problem.band)]))
            for index in range(-1, node.settings.evaluation.samples):
                rows.append(
                    {
                        "problem_id": problem.id,
                        "index": index,
                        "output_text": "c1 </think> D <eos>",
                        "trace_length": self.dice.randint(3, 14),
                        "complete": True,
                        "accepted": self.dice.random() < chance,
                        "reason": "",
                    }
                )
        self._keep(node, rows, VERDICTS)
        return {"accuracy": 0.0}

    def _sample(self, node: Node) -> dict[str, Any]:
        of_policy = node.label == "sample-policy"
        settings = node.settings.rollouts if of_policy else node.settings.traces
        rows: Rows = []
        for problem in self.written.problems["train"]:
            for k in range(settings.per_question):
                row = self._trace(node, problem, k)
                if of_policy:
                    row |= self._verdict(0.45 + BAND[str(problem.band)])
                rows.append(row)
        self._keep(node, rows, ROLLOUTS if of_policy else TRACES)
        return {"samples": len(rows)}

    def _trace(self, node: Node, problem: Problem, k: int) -> dict[str, Any]:
        length = OVER_LONG if self.dice.random() < 0.03 else self.dice.randint(3, 10)
        ids = [self.dice.randint(7, 31) for _ in range(length)]  # words for cells
        sampler = node.label.removeprefix("sample-")
        return {
            "trace_id": f"{problem.id}/{sampler}/{node.iteration}/{k}",
            "problem_id": problem.id,
            "index": k,
            "seed": k,
            "iteration": node.iteration,
            "sampler": sampler,
            "prompt_ids": [33, *(self.dice.randint(7, 31) for _ in range(6)), 35],
            "trace_ids": ids,
            "trace_text": self.trace_text(problem.answer),
            "complete": self.dice.random() > 0.05,
            "finish_reason": "stop",
            "engine_log_prob": -1.3 * length + 0.2 * self.dice.random(),
            "token_log_probs": [-1.3] * length,
        }

    def _verdict(self, chance: float) -> dict[str, Any]:
        accepted = self.dice.random() < chance
        return {
            "answer_ids": [1, 2],
            "answer_text": "D D",
            "accepted": accepted,
            "reason": "correct" if accepted else "the moves end elsewhere",
            "seconds": 0.0,
        }

    def _answer(self, node: Node) -> dict[str, Any]:
        bands = {problem.id: str(problem.band) for problem in self.written.problems["train"]}
        chance = 0.7 if node.settings.posterior.hint else 0.5
        rows: Rows = []
        for trace in self._usable(node):
            luck = chance + BAND[bands[trace["problem_id"]]]
            for n in range(node.settings.answers.per_trace):
                key = {"trace_id": trace["trace_id"], "problem_id": trace["problem_id"], "index": n}
                rows.append(key | self._verdict(luck))
        self._keep(node, rows, ANSWERS)
        return {"answers": len(rows)}

    def _score(self, node: Node) -> dict[str, Any]:
        rows: Rows = [
            {
                "trace_id": trace["trace_id"],
                "trace_length": len(trace["trace_ids"]),
                "policy_log_prob": trace["engine_log_prob"] - 2 * self.dice.random(),
                "sampler_log_prob": trace["engine_log_prob"]
                + self.engine_error * len(trace["trace_ids"]) * self.dice.random(),
                "answer_length": 4,
                "answer_log_prob": -2.0,
                "engine_gap": self.engine_error,
            }
            for trace in self._usable(node)
        ]
        self._keep(node, rows, SCORES)
        gaps = {"mean": 1.0, "p99": 3.0, "largest": 5.0}
        told = {f"engine_gap_{name}": self.engine_error * size for name, size in gaps.items()}
        return {"traces": len(rows)} | told

    def _weigh(self, node: Node) -> dict[str, Any]:
        """ρ ∝ accuracy · exp(Σ log π − Σ log q)^(1/|z|), or the rollouts' verdicts."""
        traces = self._input(node, "traces")
        usable = {trace["trace_id"] for trace in self._usable(node)}
        if "answers" in node.inputs:
            verdicts: dict[str, list[bool]] = {}
            for row in self._input(node, "answers"):
                verdicts.setdefault(row["trace_id"], []).append(row["accepted"])
            accuracy = {name: sum(row) / len(row) for name, row in verdicts.items()}
            ratio = {
                row["trace_id"]: (row["policy_log_prob"] - row["sampler_log_prob"])
                / row["trace_length"]
                for row in self._input(node, "scores")
            }
        else:
            accuracy = {row["trace_id"]: float(row["accepted"]) for row in traces}
            ratio = {}
        rho = {
            name: accuracy[name] * math.exp(ratio.get(name, 0.0)) if name in usable else 0.0
            for name in (trace["trace_id"] for trace in traces)
        }
        total: dict[str, float] = {}
        for trace in traces:
            owner = trace["problem_id"]
            total[owner] = total.get(owner, 0.0) + rho[trace["trace_id"]]
        rows: Rows = []
        for trace in traces:
            name, owner = trace["trace_id"], trace["problem_id"]
            weight = rho[name] / total[owner] if total[owner] else 0.0
            why = "" if weight else ("weight zero" if total[owner] else "no correct trace")
            rows.append(
                {
                    "trace_id": name,
                    "problem_id": owner,
                    "accuracy": accuracy.get(name, 0.0),
                    "log_ratio": ratio.get(name, 0.0),
                    "log_rho": math.log(rho[name]) if rho[name] else -math.inf,
                    "weight": weight,
                    "chosen": weight > 0,
                    "why": why,
                }
            )
        self._keep(node, rows, WEIGHTS)
        return {"traces": len(rows)}

    def _export(self, node: Node) -> dict[str, Any]:
        model = self.models.get(node.label)
        if model is not None:
            (node.path / "model").symlink_to(model)
        return {}

    def _input(self, node: Node, name: str) -> Rows:
        return self.written.rows[str(node.inputs[name].path.relative_to(self.written.folder))]

    def _usable(self, node: Node) -> Rows:
        return [
            trace
            for trace in self._input(node, "traces")
            if trace["complete"] and len(trace["trace_ids"]) < OVER_LONG
        ]


def write_run(
    folder: Path,
    *overrides: str,
    stop_at: str | None = None,
    trace_text: Callable[[str], str] = lambda answer: "c1 c2 c3 " * 5,
    edit: Callable[[Problem], Problem] = lambda problem: problem,
    models: Mapping[str, Path] | None = None,
    engine_error: float = 1e-6,
) -> Written:
    """A run in `folder`; the stage labelled `stop_at` and all after it have not begun.

    `trace_text` makes a trace's text from its question's answer, `edit` changes each training
    problem, `models` are Hugging Face folders by the label of the export that made them, and
    `engine_error` is the largest difference of engine and trainer in nats per token.
    """
    settings = load_settings(SETTINGS, [f"run.folder={folder}", *overrides])
    folder.mkdir(parents=True)
    content = settings.model_dump(mode="json")
    (folder / "settings.yaml").write_text(
        yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
    )
    written = Written(folder, settings)
    written.problems["train"] = [edit(p) for p in load_problems(settings.problems.train)]
    written.problems["test"] = list(load_problems(settings.problems.test))
    plan = make_plan(settings, {})
    writer = Writer(
        written, plan, random.Random(settings.run.seed), trace_text, models or {}, engine_error
    )
    for node in _before(plan.nodes, stop_at):
        writer.write(node)
    return written


def _before(nodes: Iterable[Node], label: str | None) -> Iterable[Node]:
    for node in nodes:
        if node.label == label:
            return
        yield node
