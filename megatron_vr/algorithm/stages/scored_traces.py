"""The traces that are scored, as the policy and as their sampler see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.plan import Node
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.traces.columns import usable
from megatron_vr.traces.tables import TRACES
from megatron_vr.training.scoring import Sequenced

Who = Literal["policy", "posterior"]
COLUMNS = ["trace_id", "problem_id", "prompt_ids", "trace_ids", "complete", "token_log_probs"]


@dataclass(frozen=True)
class Asked:
    """What a question's traces stand between under the policy."""

    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoredTraces:
    """Usable traces, in the order of their table; token ids stay in Arrow's memory."""

    table: pa.Table
    asked: Mapping[str, Asked]

    @staticmethod
    def read(node: Node, context: Context, prompts: PromptFormat) -> ScoredTraces:
        """The usable traces that `node` gets, and the questions they are of."""
        table = node.inputs["traces"].folder.read(TRACES, COLUMNS)
        faults = usable(table, node.settings.traces.drop_longer_than)
        asked = {
            problem.id: Asked(
                np.array(prompts.policy_prompt(problem.question), dtype=np.int64),
                np.array(prompts.reference_answer_ids(problem), dtype=np.int64),
            )
            for problem in context.problems(node)
        }
        kept = table.filter(pa.array([not fault for fault in faults], pa.bool_()))
        return ScoredTraces(kept, asked)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def sequence(self, index: int, who: Who) -> Sequenced:
        """Trace `index` in its prompt. Spans of the policy: the trace, the reference answer; of
        the posterior: the trace."""
        trace = self.values("trace_ids", index)
        if who == "posterior":
            prompt = self.values("prompt_ids", index)
            first, middle = len(prompt), len(prompt) + len(trace)
            return Sequenced(np.concatenate((prompt, trace)), ((first, middle),))
        asked = self._asked(index)
        first, middle = len(asked.prompt), len(asked.prompt) + len(trace)
        return Sequenced(
            np.concatenate((asked.prompt, trace, asked.answer)),
            ((first, middle), (middle, middle + len(asked.answer))),
        )

    def values(self, column: str, index: int) -> NDArray[Any]:
        """The list in `column` of trace `index`."""
        values: NDArray[Any] = self.table.column(column)[index].values.to_numpy()
        return values

    def lengths(self, index: int) -> tuple[int, int]:
        """Tokens of trace `index`, and of its question's reference answer."""
        return len(self.values("trace_ids", index)), len(self._asked(index).answer)

    def _asked(self, index: int) -> Asked:
        return self.asked[self.table.column("problem_id")[index].as_py()]
