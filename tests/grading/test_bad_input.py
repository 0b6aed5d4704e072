"""Answers and reference answers that are anything but answers, through the workers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import psutil
import pytest

from megatron_vr.config.grading_settings import GradingSettings
from megatron_vr.errors import DataError
from megatron_vr.grading import verdict as reasons
from megatron_vr.grading.grade import GradeItem, Grader
from megatron_vr.grading.pool import Job
from megatron_vr.grading.verdict import Verdict
from tests.grading.judged import grade

# For what is decided, on a machine however busy; and for what no computer works out.
DEADLINE = 120.0
MOMENT = 0.5
MEMORY_GIB = 0.25
MEGABYTE = 1_000_000
# What a verifier may say of such input; it neither raises nor crashes.
REASONS = {
    reasons.ACCEPTED,
    reasons.WRONG,
    reasons.NO_ANSWER,
    reasons.UNPARSABLE,
    reasons.TIMED_OUT,
    reasons.OUT_OF_MEMORY,
}


def _box(inside: str) -> str:
    return f"\\boxed{{{inside}}}"


def _repeated(unit: str, length: int = MEGABYTE) -> str:
    return unit * (length // len(unit))


MALFORMED = {
    "open box": r"\boxed{5",
    "box without braces": r"\boxed5",
    "empty box": r"\boxed{}",
    "blank box": r"\boxed{  }",
    "empty denominator": _box(r"\frac{5}{}"),
    "zero denominator": _box(r"\frac{5}{0}"),
    "open fraction": _box(r"\frac{5"),
    "open root": _box(r"\sqrt[}{5}"),
    "open matrix": _box(r"\begin{pmatrix}5&2\\3"),
    "matrix of unequal rows": _box(r"\begin{pmatrix}5&2\\3\end{pmatrix}"),
    "other environment": _box(r"\begin{nonsense}5\end{pmatrix}"),
    "power of nothing": _box("5^"),
    "index of nothing": _box("_5_"),
    "unknown command": _box(r"\undefined{5}"),
    "only operators": _box("+-*/^="),
    "bracket that closes nothing": _box("5)]"),
    "comment": _box("%5"),
    "trailing backslashes": _box("5\\\\\\"),
    "indefinite": _box(r"\infty - \infty"),
    "0^{0^{-1}}": _box("0^{0^{-1}}"),
    "not a number": _box("NaN"),
    "emoji": _box("🙂👍🏽"),
    "all reals": _box(r"\{x \mid x \in \mathbb{R}\}"),
    "naturals": _box(r"\{1, 2, 3, \ldots\}"),
    "integers": _box(r"\mathbb{Z}"),
    "multiples": _box(r"\{5k : k \in \mathbb{Z}\}"),
    "line": _box(r"(-\infty, \infty)"),
    "union without end": _box(r"\bigcup_{n=1}^{\infty} (2n, 2n+1)"),
    "lone surrogates": "\ud800\udfff\ud800",
    "blank": " \n\t\r\n ",
    "nothing": "",
    "NULs": "\0" * 1000,
}


def _large(length: int) -> dict[str, str]:
    """Answers of `length` characters and such as nest deeply."""
    return {
        "digits": _repeated("7", length),
        "digits in a box": _box(_repeated("7", length)),
        "opening braces": _repeated("{", length),
        "closing braces": _repeated("}", length),
        "fractions": _box(_repeated(r"\frac{", length)),
        "spaces": _repeated(" ", length),
        "NULs": _repeated("\0", length),
        "open boxes": r"\boxed{" * 100_000,
        "answer": _repeated("answer ", length),
        "dollars": _repeated("$", length),
        "list": _repeated("1, ", length),
        "sum in a box": _box(_repeated("1+", length) + "1"),
        "nested parentheses": _box("(" * 10_000 + "2" + ")" * 10_000),
        "nested fractions": _box(r"\frac{1}{" * 10_000 + "2" + "}" * 10_000),
        "matrix": _box(
            r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 1000)] * 1000) + r"\end{pmatrix}"
        ),
    }


LARGE = _large(MEGABYTE)
# Short, and more than any computer can work out.
ENDLESS = {
    "tower": _box("9^{9^{9^{9}}}"),
    "tower of Python": "9**9**9**9",
    "factorial of a tower": _box("10^{10^{10}}!"),
    "sum": _box(r"\sum_{k=1}^{10^{12}} k"),
    "product": _box(r"\prod_{k=1}^{10^{12}} k"),
    "binomial": _box(r"\binom{10^{18}}{10^9}"),
}
# As mathematics; as a choice all are quickly read.
NOT_WAITED_FOR = {
    *("fractions", "open boxes", "sum in a box", "nested parentheses", "nested fractions"),
    *("matrix", "tower", "tower of Python", "factorial of a tower", "product", "binomial"),
}
# 12, dressed up or buried.
RIGHT = {
    "zero-width around": "\\boxed{\u200b12\ufeff}",
    "zero-width inside": "\\bo\u200bxed{1\u200b2}",
    "right to left around": "\\boxed{\u202e12\u202c}",
    "marks on the last line": "The answer is \u200f12\u200e.\u2060",
    "NULs": "\0\\boxed{\x0012\0}\0",
    "lone surrogate": "\\boxed{\ud80012}",
    "after spaces": " " * MEGABYTE + "12",
    "before line ends": "12" + "\r\n" * (MEGABYTE // 2),
    "in boxes in boxes": r"\boxed{" * 100_000 + "12" + "}" * 100_000,
}
CHOICES = ["4", "12", "6", "twenty"]


def _math(answers: Sequence[str], expected: str = "12") -> list[GradeItem]:
    return [GradeItem("math", {}, expected, answer) for answer in answers]


def _choice(answers: Sequence[str]) -> list[GradeItem]:
    return [GradeItem("choice", {"choices": CHOICES}, "B", answer) for answer in answers]


def _good(i: int) -> GradeItem:
    """Another each time, so that no answer is known from before."""
    return GradeItem("math", {}, f"\\frac{{{i}}}{{7}}", f"Hence \\boxed{{\\frac{{{2 * i}}}{{14}}}}")


class _Impatient(Grader):
    """Waits a moment for items with these texts, and for all others as long as it takes."""

    def __init__(self, settings: GradingSettings, kinds: set[str], endless: Collection[str]):
        super().__init__(settings, kinds)
        self._endless = {*endless}

    def _job(self, item: GradeItem) -> Job:
        """Its deadline is the item's own."""
        job = super()._job(item)
        stuck = not self._endless.isdisjoint((item.answer_text, item.expected))
        return replace(job, deadline_seconds=MOMENT) if stuck else job


def _judged_among_good_ones(
    bad: Sequence[GradeItem], endless: Collection[str] = ()
) -> list[Verdict]:
    """The verdicts of the `bad` items; each is followed by a good one that must be accepted.

    `endless` are the answers and references that are not waited for.
    """
    items = [item for i, one in enumerate(bad) for item in (one, _good(i + 1))]
    settings = GradingSettings(workers=2, deadline_seconds=DEADLINE, memory_gib=MEMORY_GIB)
    with _Impatient(settings, {item.problem_kind for item in items}, endless) as grader:
        verdicts = grader.grade(items)
    assert [verdict.reason for verdict in verdicts[1::2]] == [reasons.ACCEPTED] * len(bad)
    assert {verdict.reason.partition(":")[0] for verdict in verdicts} <= REASONS
    assert all(len(verdict.reason) < 1000 for verdict in verdicts)
    return verdicts[::2]


@contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """The largest resident memory of this process and of any of its children meanwhile."""
    peak = {"own": 0, "child": 0}
    done = threading.Event()
    own = psutil.Process()

    def watch() -> None:
        while not done.wait(0.02):
            for process in [own, *own.children(recursive=True)]:
                key = "own" if process == own else "child"
                try:
                    peak[key] = max(peak[key], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def test_malformed_answers_are_judged_and_none_is_accepted() -> None:
    verdicts = _judged_among_good_ones(_math(list(MALFORMED.values())))
    assert [name for name, v in zip(MALFORMED, verdicts, strict=True) if v.accepted] == []
    assert all(verdict.decided for verdict in verdicts)


def test_large_and_endless_answers_cost_only_themselves_and_bounded_memory() -> None:
    with _peak_memory() as before:
        assert _judged_among_good_ones(_math([_box("5")]))[0].reason == reasons.WRONG
    answers = _large(MEGABYTE // 4) | ENDLESS | {"megabyte": LARGE["digits"]}
    with _peak_memory() as peak:
        verdicts = _judged_among_good_ones(
            _math(list(answers.values())), [answers[name] for name in NOT_WAITED_FOR]
        )
    assert [name for name, v in zip(answers, verdicts, strict=True) if v.accepted] == []
    found = {name: verdict.reason for name, verdict in zip(answers, verdicts, strict=True)}
    assert found["tower"] == reasons.TIMED_OUT
    assert {name for name in found if found[name] == reasons.TIMED_OUT} <= NOT_WAITED_FOR
    assert before["child"] > 0
    assert peak["child"] < before["child"] + 1.5 * MEMORY_GIB * 2**30
    # Jobs and verdicts may hold each text a few times, and earlier tests left their garbage.
    size = sum(len(answer) for answer in answers.values())
    assert peak["own"] < before["own"] + 16 * size


def test_an_answer_that_wants_more_memory_than_a_worker_may_take_is_not_accepted() -> None:
    settings = GradingSettings(workers=1, deadline_seconds=DEADLINE, memory_gib=0.03125)
    with Grader(settings, ["math"]) as grader:
        verdicts = grader.grade([*_math([_repeated("1, ", 10 * MEGABYTE)]), _good(1)])
    assert [verdict.reason for verdict in verdicts] == [reasons.OUT_OF_MEMORY, reasons.ACCEPTED]


def test_what_prints_nothing_does_not_make_a_right_answer_wrong() -> None:
    math = _judged_among_good_ones(_math(list(RIGHT.values())))
    assert [name for name, v in zip(RIGHT, math, strict=True) if not v.accepted] == []
    choice = _judged_among_good_ones(_choice([text.replace("12", "B") for text in RIGHT.values()]))
    assert [name for name, v in zip(RIGHT, choice, strict=True) if not v.accepted] == []


def test_digits_of_other_scripts_are_judged() -> None:
    """Whether they count as 12 is left open: readers differ."""
    digits = ["١٢", "１２", "१२", "𝟏𝟐", "⑫", "Ⅻ", "¹²", "十二", "۱۲"]
    answers = [text for one in digits for text in (_box(one), f"The answer is {one}.")]
    verdicts = _judged_among_good_ones(_math(answers, "13"))
    assert not any(verdict.accepted for verdict in verdicts)
    assert all(verdict.decided for verdict in verdicts)


def test_odd_reference_answers_are_judged_and_accept_nothing_else() -> None:
    expected = {
        "empty": "",
        "blank": " \n ",
        "NULs": "\0\0",
        "open box": r"\boxed{5",
        "empty denominator": r"\frac{5}{}",
        "dollars": "$$",
        "prose": "see the figure",
        "many digits": _repeated("7", MEGABYTE // 4),
        "many braces": _repeated("{", MEGABYTE // 4),
        "open boxes": r"\boxed{" * 100_000,
        "tower": "9^{9^{9^{9}}}",
    }
    items = [GradeItem("math", {}, gold, _box("5")) for gold in expected.values()]
    endless = [expected[name] for name in ("many braces", "open boxes", "tower")]
    verdicts = _judged_among_good_ones(items, endless)
    assert [name for name, v in zip(expected, verdicts, strict=True) if v.accepted] == []


def test_marks_in_a_reference_answer_do_not_count() -> None:
    golds = ["\u200b12\u200b", "\u202e12\u202c", "\x0012\0", "\ud80012", "\\boxed{\ufeff12}"]
    items = [GradeItem("math", {}, gold, _box("12")) for gold in golds]
    assert [verdict.accepted for verdict in grade(items, 2, DEADLINE)] == [True] * len(golds)


def test_bad_answers_to_multiple_choice_questions_are_judged_and_none_is_accepted() -> None:
    answers = MALFORMED | LARGE | ENDLESS
    verdicts = _judged_among_good_ones(_choice(list(answers.values())))
    assert [name for name, v in zip(answers, verdicts, strict=True) if v.accepted] == []
    # Its searches are linear: none of this may take long.
    assert all(verdict.decided for verdict in verdicts)


@pytest.mark.parametrize("expected", ["", "\0", "E", "thirteen", _repeated("7")])
def test_a_multiple_choice_question_without_a_right_choice_is_refused(expected: str) -> None:
    item = GradeItem("choice", {"choices": CHOICES}, expected, "B")
    with pytest.raises(DataError, match="neither a letter from A to D nor one of the choices"):
        grade([item], 1, DEADLINE)


def test_bad_answers_to_puzzles_are_judged_and_none_is_accepted() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    items = []
    for task in ("basic_arithmetic", "polynomial_equations", "countdown"):
        puzzle = json.loads(json.dumps(reasoning_gym.create_dataset(task, seed=3, size=1)[0]))
        parameters = {"task": task, "entry": puzzle}
        names = ["digits", "opening braces", "NULs", "open boxes", "dollars"]
        answers = [LARGE[name] for name in names] + list(MALFORMED.values())
        answers.append(ENDLESS["tower of Python"])
        items += [
            GradeItem("reasoning-gym", parameters, puzzle["answer"], answer) for answer in answers
        ]
    # One of the puzzles asks for an expression and computes it.
    endless = [LARGE["digits"], ENDLESS["tower of Python"]]
    assert not any(verdict.accepted for verdict in _judged_among_good_ones(items, endless))


def test_verdicts_depend_neither_on_the_number_of_workers_nor_on_the_order() -> None:
    endless = [ENDLESS["tower"], ENDLESS["tower of Python"]]
    items = [
        *_math([*MALFORMED.values(), *RIGHT.values(), *endless]),
        *_choice([*MALFORMED.values(), "B", "The answer is (C)."]),
        *(_good(i) for i in range(1, 20)),
        *_math([_box(f"{i}") for i in range(5, 15)]),
        *_math(["x^2 + 2x + 1", _box("(x+1)^2"), _box("x^2+1")], "(x+1)^2"),
        *_math([_box("(1, 2)"), _box("(2, 1)"), _box(r"\{2, 1\}")], r"\{1, 2\}"),
    ]
    orders = [list(range(len(items))) for _ in range(3)]
    orders[1].reverse()
    Random(1).shuffle(orders[2])
    found = []
    for workers, order in zip((1, 2, 3), orders, strict=True):
        settings = GradingSettings(workers=workers, deadline_seconds=DEADLINE)
        with _Impatient(settings, {"math", "choice"}, endless) as grader:
            verdicts = grader.grade([items[i] for i in order])
        by_item = dict(zip(order, verdicts, strict=True))
        found.append([(v.accepted, v.reason, v.given) for _, v in sorted(by_item.items())])
    differing = {
        item.answer_text: verdicts
        for item, *verdicts in zip(items, *found, strict=True)
        if len({*verdicts}) > 1
    }
    assert differing == {}
    assert sum(reason == reasons.TIMED_OUT for _, reason, _ in found[0]) == 2
    assert sum(accepted for accepted, _, _ in found[0]) >= 30


def test_no_worker_is_left_when_a_grader_with_stuck_workers_is_closed() -> None:
    own = psutil.Process(os.getpid())
    before = {child.pid for child in own.children(recursive=True)}
    assert grade(_math([ENDLESS["tower"]]), 2, MOMENT)[0].reason == reasons.TIMED_OUT
    left = [c for c in own.children(recursive=True) if c.pid not in before]
    assert [c.name() for c in left if "resource_tracker" not in " ".join(c.cmdline())] == []
