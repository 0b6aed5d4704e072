"""problems: read the sources once, check them, keep them as a table."""

from __future__ import annotations

from collections import Counter

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.problems.problem import to_table
from megatron_vr.problems.sources import load_problems

PREFIX = "problems-"


def run(node: Node, context: Context) -> Finished:
    """Write the problems of one set (train, validation or test) as part 0."""
    which = node.label.removeprefix(PREFIX)
    if context.world.is_main:
        problems = load_problems(getattr(node.settings.problems, which))
        node.folder.write_part(0, to_table(problems))
        traced = sum(problem.reference_trace is not None for problem in problems)
        bands = Counter(problem.band for problem in problems if problem.band)
        summary = {"questions": len(problems), "with_reference": traced, "bands": dict(bands)}
    else:
        summary = {}
    return Finished(parts=1, summary=summary)
