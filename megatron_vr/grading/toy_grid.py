"""The toy task's verifier, in the form of all verifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_vr.problems.toy import accepts


def judge(parameters: Mapping[str, Any], expected: str, answer_text: str) -> tuple[bool, str]:
    """Whether the moves are a shortest path; any will do, `expected` is not looked at."""
    return accepts(parameters, answer_text)
