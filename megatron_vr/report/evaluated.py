"""The evaluations of a run as one number per question, metric and row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.evaluation.metrics import pass_at_k
from megatron_vr.report.results import Evaluated
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.traces.tables import VERDICTS

GREEDY = -1


def read_rows(run: RunFolder) -> dict[str, Evaluated]:
    """Row → its evaluation after the last iteration (the start: before the first), where done."""
    last = run.settings.run.iterations
    stages = {
        row: run.find(
            "evaluate", MAIN_ARM if row == "start" else row, 0 if row == "start" else last
        )
        for row in run.rows
    }
    return {row: read_evaluation(stage) for row, stage in stages.items() if stage is not None}


def read_evaluation(stage: Stage) -> Evaluated:
    """One evaluation: `greedy`, `accuracy` (mean of the samples) and pass@k of each question."""
    k = stage.folder.fingerprint.content["settings"]["evaluation"]["k"]
    greedy: dict[str, bool] = {}
    samples: dict[str, list[bool]] = {}
    for row in stage.rows(VERDICTS, ["problem_id", "index", "accepted"]):
        if row["index"] == GREEDY:
            greedy[row["problem_id"]] = row["accepted"]
        else:
            samples.setdefault(row["problem_id"], []).append(row["accepted"])
    ids = tuple(samples)
    values: Mapping[str, list[float]] = {
        "greedy": [float(greedy[i]) for i in ids],
        "accuracy": [float(np.mean(samples[i])) for i in ids],
        f"pass@{k}": [pass_at_k(len(samples[i]), sum(samples[i]), k) for i in ids],
    }
    return Evaluated(ids, {name: np.array(column) for name, column in values.items()})
