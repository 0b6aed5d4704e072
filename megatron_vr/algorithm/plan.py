"""Which stages a run consists of, in order: pure decisions, nothing is read or written.

The graph of one row (`arm`), for t = 1..T, with π_0 from `sft`:

    π_{t-1} ─► sample policy ─┐ (where RFT or the posterior's data need it)
    base/q_{t-1} ─► posterior ─► export ─► sample posterior ─► answer, score ─► weigh ─► train
    train ─► export = π_t ─► evaluate

Invariants:
- a node's fingerprint holds everything its result depends on, so two rows that agree so far
  share the node (and its folder): comparisons cost only what differs;
- every node comes after its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.engine_settings import precision_of
from megatron_vr.config.grading_settings import GradingSettings
from megatron_vr.config.settings import Settings, TrainSettings
from megatron_vr.traces.fingerprint import make_fingerprint
from megatron_vr.traces.store import StageFolder

UNFINGERPRINTED_TRAIN = {
    *("save_every", "save_aside", "keep_last", "keep_every", "log_every", "micro_batch_tokens"),
    # What a training that finished would have done in a case it did not meet.
    *("too_long", "not_finite", "skips_allowed"),
}

SAMPLING_STAGES = ("sample", "answer", "evaluate")


@dataclass(frozen=True)
class Node:
    """One stage of one row in one iteration."""

    stage: str
    label: str
    arm: str
    iteration: int
    settings: Settings
    folder: StageFolder
    inputs: Mapping[str, Node] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder of this node's results."""
        return self.folder.path

    @property
    def name(self) -> str:
        """How it is called in its run: by its folder in the run's, as in `iteration-1/train`."""
        return self.path.relative_to(self.settings.run.folder).as_posix()

    @property
    def is_served(self) -> bool:
        """Whether rollout servers do its work, and one process is their client."""
        return self.stage in SAMPLING_STAGES and self.settings.engine.kind != "embedded"


@dataclass(frozen=True)
class Plan:
    """The nodes in running order, and the evaluation of each row of the results table."""

    nodes: tuple[Node, ...]
    rows: Mapping[str, Node]

    def check(self) -> None:
        """Raise StageError where a node's folder was made under other settings."""
        for node in self.nodes:
            node.folder.check()

    def select(self, stage: str, iteration: int, arm: str) -> list[Node]:
        """The nodes of `stage` in `iteration` that the row `arm` needs."""
        wanted = {id(node) for node in self._ancestry(arm)}
        return [
            node
            for node in self.nodes
            if node.stage == stage and node.iteration == iteration and id(node) in wanted
        ]

    def _ancestry(self, arm: str) -> list[Node]:
        found: dict[int, Node] = {}
        waiting = [self.rows[arm]]
        while waiting:
            node = waiting.pop()
            if id(node) not in found:
                found[id(node)] = node
                waiting.extend(node.inputs.values())
        return list(found.values())


def make_plan(settings: Settings, digests: Mapping[str, Any]) -> Plan:
    """The plan of `settings`; `digests` are content hashes of the local problem files."""
    builder = _Builder(settings.run.folder, dict(digests))
    rows: dict[str, Node] = {}
    for arm, arm_settings in arms(settings).items():
        start, final = builder.row(arm, arm_settings)
        rows.setdefault("start", start)
        rows[arm] = final
    return Plan(tuple(builder.nodes.values()), rows)


class _Builder:
    """Collects nodes, one for each distinct fingerprint."""

    def __init__(self, root: Path, digests: dict[str, Any]) -> None:
        self.root = root
        self.digests = digests
        self.nodes: dict[str, Node] = {}

    def row(self, arm: str, s: Settings) -> tuple[Node, Node]:
        """Nodes of one row; returns the evaluations of π_0 and of π_T."""
        train, test = self._problems(arm, s, "train"), self._problems(arm, s, s.evaluation.problems)
        contents = {"format": self.digests.get("format"), "base": self.digests.get("base")}
        base = self._add("base", "base", arm, 0, s, _base(s) | {"content": contents}, {})
        sft = self._add(
            "sft", "sft", arm, 0, s, _training(s, s.policy), {"start": base, "problems": train}
        )
        policy = self._export("export-policy", arm, 0, s, sft, base)
        start = final = self._evaluate(arm, 0, s, policy, test)
        posterior = base
        for t in range(1, s.run.iterations + 1):
            policy, posterior = self._iteration(arm, t, s, base, policy, posterior, train)
            final = self._evaluate(arm, t, s, policy, test)
        return start, final

    def _iteration(
        self, arm: str, t: int, s: Settings, base: Node, policy: Node, posterior: Node, train: Node
    ) -> tuple[Node, Node]:
        inputs = {"problems": train, "start": policy if s.train.start == "last" else base}
        if s.traces.sampler == "policy":
            inputs["traces"] = self._rollouts(arm, t, s, policy, train)
        elif s.traces.sampler == "posterior":
            posterior = self._posterior(arm, t, s, base, policy, posterior, train)
            inputs |= self._posterior_traces(arm, t, s, policy, posterior, train)
        if "traces" in inputs:
            weighed = {key: node for key, node in inputs.items() if key not in ("start", "policy")}
            settings = {
                "weights": _dump(s.weights),
                "data": _dump(s.data),
                "longest": s.traces.drop_longer_than,
            }
            inputs["weights"] = self._add("weigh", "weigh", arm, t, s, settings, weighed)
        settings = _training(s, s.train) | {"data": _dump(s.data)}
        trained = self._add("train", "train", arm, t, s, settings, inputs)
        return self._export("export-policy", arm, t, s, trained, base), posterior

    def _rollouts(self, arm: str, t: int, s: Settings, policy: Node, train: Node) -> Node:
        settings = {"sampling": _dump(s.rollouts), **_sampling(s), **_graded(s), "iteration": t}
        return self._add(
            "sample", "sample-policy", arm, t, s, settings, {"model": policy, "problems": train}
        )

    def _posterior(
        self, arm: str, t: int, s: Settings, base: Node, policy: Node, last: Node, train: Node
    ) -> Node:
        start = last if s.posterior.train.start == "last" else base
        inputs = {"start": start, "problems": train}
        if s.posterior.data != "references":
            inputs["rollouts"] = self._rollouts(arm, t, s, policy, train)
        settings = _training(s, s.posterior.train) | {
            "hint": s.posterior.hint,
            "data": s.posterior.data,
            "longest": None if s.posterior.data == "references" else s.traces.drop_longer_than,
        }
        trained = self._add("posterior", "posterior", arm, t, s, settings, inputs)
        return self._export("export-posterior", arm, t, s, trained, base)

    def _posterior_traces(
        self, arm: str, t: int, s: Settings, policy: Node, posterior: Node, train: Node
    ) -> dict[str, Node]:
        keep = {"sampler", "drop_longer_than"}
        settings = {
            "sampling": {k: v for k, v in _dump(s.traces).items() if k not in keep},
            "hint": s.posterior.hint,
            "iteration": t,
            **_sampling(s),
        }
        source = {"model": posterior, "problems": train}
        traces = self._add("sample", "sample-posterior", arm, t, s, settings, source)
        scored = {"policy": policy, "posterior": posterior, "traces": traces, "problems": train}
        score = self._add("score", "score", arm, t, s, _scoring(s), scored)
        found = {"traces": traces, "scores": score}
        if s.weights.estimator == "accuracy":
            settings = {
                "sampling": _dump(s.answers),
                **_sampling(s),
                **_graded(s),
                "longest": s.traces.drop_longer_than,
            }
            answered = {"model": policy, "traces": traces, "problems": train}
            found["answers"] = self._add("answer", "answer", arm, t, s, settings, answered)
        return found

    def _evaluate(self, arm: str, t: int, s: Settings, policy: Node, test: Node) -> Node:
        settings = {"evaluation": _dump(s.evaluation), **_sampling(s), **_graded(s)}
        return self._add(
            "evaluate", "evaluate", arm, t, s, settings, {"model": policy, "problems": test}
        )

    def _export(self, label: str, arm: str, t: int, s: Settings, trained: Node, base: Node) -> Node:
        settings = {"dtype": s.model.dtype}
        return self._add("export", label, arm, t, s, settings, {"trained": trained, "base": base})

    def _problems(self, arm: str, s: Settings, which: str) -> Node:
        sources = [_dump(source) for source in getattr(s.problems, which)]
        settings = {"set": which, "sources": sources, "content": self.digests.get(which)}
        return self._add("problems", f"problems-{which}", arm, 0, s, settings, {})

    def _add(
        self,
        stage: str,
        label: str,
        arm: str,
        t: int,
        s: Settings,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Node],
    ) -> Node:
        prints = {name: node.folder.fingerprint for name, node in inputs.items()}
        fingerprint = make_fingerprint(stage, settings, prints)
        known = self.nodes.get(fingerprint.digest)
        if known is not None:
            return known
        folder = StageFolder(self._path(label, arm, t), fingerprint)
        node = Node(stage, label, arm, t, s, folder, dict(inputs))
        self.nodes[fingerprint.digest] = node
        return node

    def _path(self, label: str, arm: str, t: int) -> Path:
        root = self.root if arm == MAIN_ARM else self.root / "comparisons" / arm
        return root / f"iteration-{t}" / label


def _dump(settings: Any) -> dict[str, Any]:
    return dict(settings.model_dump(mode="json"))


def _base(s: Settings) -> dict[str, Any]:
    made = {"random": _dump(s.model.random), "seed": s.run.seed} if s.model.random else {}
    return {"path": s.model.path, "format": s.prompts.format, **made}


def _training(s: Settings, train: TrainSettings) -> dict[str, Any]:
    kept = {key: value for key, value in _dump(train).items() if key not in UNFINGERPRINTED_TRAIN}
    fp8 = {"fp8": _dump(s.model.fp8)} if s.model.fp8 is not None else {}
    told = {"train": kept, "dtype": s.model.dtype, "seed": s.run.seed, **fp8}
    return told | {"prompts": _dump(s.prompts)}


def _sampling(s: Settings) -> dict[str, Any]:
    return {
        "seed": s.run.seed,
        "prompts": _dump(s.prompts),
        "engine": s.engine.kind,
        "part_size": s.engine.part_size,
        **precision_of(s.engine),
    }


def _graded(s: Settings) -> dict[str, Any]:
    """What verdicts depend on; of the rest only what is not the default."""
    told = {"math": _dump(s.grading.math), "code": _dump(s.grading.code)}
    usual = GradingSettings()
    defaults = {"math": _dump(usual.math), "code": _dump(usual.code)}
    changed = {name: value for name, value in told.items() if value != defaults[name]}
    return {"deadline_seconds": s.grading.deadline_seconds, **changed}


def _scoring(s: Settings) -> dict[str, Any]:
    return {
        "part_size": s.scoring.part_size,
        "per_token": s.scoring.per_token,
        "dtype": s.model.dtype,
        "prompts": _dump(s.prompts),
        "hint": s.posterior.hint,
        "longest": s.traces.drop_longer_than,
    }
