"""Answers to mathematics questions, compared as expressions by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import math_verify

from megatron_vr.grading.final_answer import final_answer
from megatron_vr.grading.verdict import NO_ANSWER, UNPARSABLE, WRONG

# math-verify's own timeouts use signals, which another's deadline must not share; 0 is off.
NO_TIMEOUT = 0
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that they are off


def judge(parameters: Mapping[str, Any], expected: str, answer_text: str) -> tuple[bool, str]:
    """Whether the final answer in `answer_text` equals `expected` as an expression.

    `expected` is LaTeX, alone or in `$…$` or a box. May take arbitrarily long.
    """
    given = final_answer(answer_text)
    return (False, NO_ANSWER) if given is None else _compare(_as_latex(expected), given)


def _as_latex(expected: str) -> str:
    delimited = "\\boxed" in expected or "$" in expected
    return expected if delimited else f"\\boxed{{{expected}}}"


@lru_cache(maxsize=4096)
def _compare(expected: str, given: str) -> tuple[bool, str]:
    reference = math_verify.parse(expected, parsing_timeout=NO_TIMEOUT)
    if not reference:
        return False, f"{UNPARSABLE}: the reference answer {expected!r}"
    answer = math_verify.parse(given, parsing_timeout=NO_TIMEOUT)
    if not answer:
        return False, UNPARSABLE
    return math_verify.verify(reference, answer, timeout_seconds=NO_TIMEOUT), WRONG
