"""Answers to multiple-choice questions, judged by the letter that was chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from megatron_vr.errors import DataError
from megatron_vr.grading.verdict import UNPARSABLE, WRONG
from megatron_vr.problems.stratos import last_boxed

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
# "the answer is (C)", "Answer: **C**", "correct option c."; but not "the answer is a matter of …"
_STATED = re.compile(
    r"\b(?i:answer|option|choice)\b(?:\s+is)?\s*[:=]?[\s*_$({\[]*"
    r"(?:([A-Z])(?![A-Za-z'])|([a-z])(?=[)\]}.*_$]|\s*$))",
    re.MULTILINE,
)
# A line that is a letter, or begins with one in the way choices are listed: "C", "(C) x", "C. x"
_LISTED = re.compile(r"[*_$]*(?:\(([A-Za-z])\)|([A-Za-z])(?:[.):]|[*_$]*$))")


def judge(parameters: Mapping[str, Any], expected: str, answer_text: str) -> tuple[bool, str]:
    """Whether the chosen letter is that of `expected`, a letter or the text of a choice.

    `parameters` are {"choices": [text of A, text of B, …]}. Raises DataError when `expected` is
    no choice.
    """
    choices: Sequence[str] = parameters["choices"]
    right = _letter(expected, choices)
    if right is None:
        raise DataError(
            f"the answer {expected!r} is neither a letter from A to "
            f"{ascii_uppercase[len(choices) - 1]} nor one of the choices {list(choices)}"
        )
    chosen = chosen_letter(answer_text, choices)
    if chosen is None:
        return False, UNPARSABLE
    return chosen == right, f"{WRONG}: chose {chosen}"


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    r"""The letter that `text` settles on, or None.

    Looked at in this order: the last `\boxed{…}`; the last "answer is C" or the like; the last
    line, when it is a letter, begins like a listed choice, or is the text of one.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return _of_line(_TEXT_COMMAND.sub(r"\1", boxed), choices)
    stated = [(m.group(1) or m.group(2)).upper() for m in _STATED.finditer(text)]
    known = [letter for letter in stated if letter in ascii_uppercase[: len(choices)]]
    if known:
        return known[-1]
    lines = [line for line in text.splitlines() if line.strip()]
    return _of_line(lines[-1], choices) if lines else None


def _of_line(line: str, choices: Sequence[str]) -> str | None:
    exact = _letter(line, choices)
    if exact is not None:
        return exact
    listed = _LISTED.match(line.strip())
    return _letter(listed.group(1) or listed.group(2), choices) if listed else None


def _letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of `answer`: itself, or that of the one choice with the same text."""
    letters = ascii_uppercase[: len(choices)]
    answer = answer.strip()
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    same = [
        letter
        for letter, choice in zip(letters, choices, strict=True)
        if choice.strip().casefold() == answer.casefold()
    ]
    return same[0] if len(same) == 1 else None
