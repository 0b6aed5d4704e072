from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.errors import DataError
from megatron_vr.grading.choice import chosen_letter, judge
from megatron_vr.grading.clean import cleaned
from megatron_vr.grading.verdict import Judgement
from megatron_vr.problems.boxes import last_boxed

CHOICES = ["apple", "pear", "a fig", "10 m/s"]
TEN = [f"choice number {i}" for i in range(10)]


@pytest.mark.parametrize(
    "text",
    [
        "(C)",
        "C.",
        "c)",
        "**C**",
        r"\boxed{\text{C}}",
        r"$\boxed{\mathbf{(C)}}$",
        r"\boxed{C. a fig}",
        r"\boxed{\text{C) }\text{a fig}}",
        r"\boxed{C\ \text{a fig}}",
        r"\boxed{\text{A fig.}}",
        r"\boxed{The answer is option C}",
        r"\boxed{\boxed{C}}",
        r"\\boxed{C}",
        "**Answer:** C",
        "**Answer**: (C)",
        "The answer is option c.",
        "Answer: $\\text{C}$",
        "Answer: C (because B is wrong)",
        "Answer: C, not B",
        "Answer: C\n\nB is wrong, as the answer must be a fruit.",
        "The answer is:\n\n\tC",
        "## Answer\n\n**C**\n\nIt is soft.",
        "The correct answer would be “C”.",
        "The answer is a fig.",
        "A  FIG",
        "C: a fig",
        "C) a fig",
        "C - a fig",
        "- C. A soft one",
        "B is too hard.\nSo I choose option (C).",
        "The answer is not B. The answer is C.",
        "The answer is C. Option D fails as well.",
        "The answer is E. No, the answer is C.",
        "\u200bC\u200b",
        "The answer is \u202b(C)\u202c.",
        "\\boxed{\u200e\x00C\u2060}",
        "Answer\ufeff:\u00a0C",
        "Answer: C\r\nB is hard.",
        "Answer: \ud800C",
        "Answer:" + " " * 5000 + "C",
    ],
)
def test_an_answer_that_settles_on_the_third_choice(text: str) -> None:
    assert chosen_letter(text, CHOICES) == "C"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A, C}",
        r"\boxed{A \text{ or } C}",
        r"\boxed{A) C)}",
        r"\boxed{C (not B)}",
        r"\boxed{AC}",
        r"\boxed{C: apple}",
        r"The answer is C. \boxed{A and B}",
        "The answer is A or C.",
        "The answer is A, C",
        "The answer is B. In fact the answer is A or C.",
        r"\boxed{E}",
        r"\boxed{17}",
        r"\boxed{C",
        "The answer is a matter of taste.",
        "C is a letter",
        "Option C fails. Option D fails.",
        "Answer: E = mc^2",
        "-",
        "\u200b\x00",
        "",
    ],
)
def test_an_answer_that_settles_on_none_or_on_two(text: str) -> None:
    assert chosen_letter(text, CHOICES) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{10\,\text{m/s}}", "D"),
        (r"\boxed{10~m/s}", None),
        ("Answer: 10 m/s", "D"),
        ("$10\\ \\mathrm{m/s}$.", "D"),
        ("m/s", None),
    ],
)
def test_the_text_of_a_choice_counts_however_it_is_typeset(text: str, letter: str | None) -> None:
    assert chosen_letter(text, CHOICES) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [("(I)", "I"), ("The answer is I.", "I"), ("The answer is: I think (B)", None), ("K", None)],
)
def test_the_letter_i_is_not_the_word(text: str, letter: str | None) -> None:
    assert chosen_letter(text, TEN) == letter


def test_signs_and_cases_tell_choices_apart() -> None:
    assert chosen_letter(r"\boxed{-5}", ["5", "-5"]) == "B"
    assert chosen_letter(r"\boxed{-5}", ["5", "10"]) is None
    assert chosen_letter(r"\boxed{Aa}", ["aa", "Aa", "AA"]) == "B"
    assert chosen_letter(r"\boxed{aA}", ["aa", "Aa", "AA"]) is None
    assert chosen_letter(r"\boxed{\$5}", [r"$4", r"\$5"]) == "B"


def test_a_letter_outranks_a_choice_whose_text_is_that_letter() -> None:
    swapped = ["B", "A", "d", "c"]
    assert chosen_letter("The answer is B.", swapped) == "B"
    assert chosen_letter("(a)", swapped) == "A"
    # A small letter is the text where a choice has it, and so is a letter beyond the choices.
    assert chosen_letter("c", swapped) == "D"
    assert chosen_letter("X", ["Y", "X"]) == "B"
    assert chosen_letter(r"\boxed{D. A. thaliana}", ["x", "y", "z", "A. thaliana"]) == "D"
    assert chosen_letter(r"\boxed{A. thaliana}", ["x", "y", "z", "A. thaliana"]) == "D"


def test_the_judgement_tells_the_letter() -> None:
    parameters = {"choices": CHOICES}
    assert judge(parameters, "C", "(C)") == Judgement(True, "wrong: chose C", "C")
    assert judge(parameters, "a fig", "(C)").accepted
    assert judge(parameters, "C", "Answer: A") == Judgement(False, "wrong: chose A", "A")
    assert judge(parameters, "C", "no idea") == Judgement(False, "unparsable", None)


def test_two_choices_with_the_right_text_are_both_right() -> None:
    parameters = {"choices": ["1", "2", "2 "]}
    assert [judge(parameters, "B", letter).accepted for letter in "ABC"] == [False, True, True]
    assert judge(parameters, "2", "B").accepted


@pytest.mark.parametrize(
    ("parameters", "expected", "message"),
    [
        ({"choices": CHOICES}, "cherry", "'cherry' is neither a letter from A to D"),
        ({"choices": CHOICES}, "E", "'E' is neither"),
        ({}, "A", "needs 1 to 26 texts as `choices`, not None"),
        ({"choices": []}, "A", "1 to 26 texts"),
        ({"choices": ["x"] * 27}, "A", "1 to 26 texts"),
        ({"choices": "ABCD"}, "A", "1 to 26 texts"),
        ({"choices": [1, 2]}, "A", "1 to 26 texts"),
    ],
)
def test_a_problem_without_fit_choices_is_refused(
    parameters: dict[str, object], expected: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        judge(parameters, expected, "A")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{A} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{A} and \boxed{", "A"),
        (r"\boxed{A} and \boxed{ }", "A"),
        (r"\boxed {\{1\}}", r"\{1\}"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"}}{ \boxed{A}", "A"),
        (r"\boxed{\boxed{}}", r"\boxed{}"),
        (r"{\boxed A}", None),
    ],
)
def test_the_last_box_that_is_closed_and_not_blank(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@given(st.lists(st.sampled_from([r"\boxed{", "{", "}", r"\{", r"\}", r"\\ ", "a", " "])))
def test_the_last_box_is_that_of_the_slow_search_by_counting_braces(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert last_boxed(text) == slow_last_boxed(text)


def slow_last_boxed(text: str) -> str | None:
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[match.end() :], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                inside = text[match.end() :][: brace.start()].strip()
                if inside:
                    return inside
                break
    return None


def test_cleaned_text_has_no_invisible_characters_and_plain_line_ends() -> None:
    assert cleaned("a\u200b\u200e\u202e\u2066\u00ad\ufeff\x00\x7f\ud800b\U000e0041") == "ab"
    assert cleaned("a\r\nb\rc\u2028d\x85e\x0bf\x0cg") == "a\nb\nc\nd\ne\nf\ng"
    plain = "tab\t, newline\n, é e\u0301, \u00a0 \u3000 (spaces), 😀, \\boxed{√2}"
    assert cleaned(plain) == plain


def test_a_megabyte_of_anything_is_judged_at_once() -> None:
    """In a process that is killed after minutes: with backtracking it would take hours."""
    script = r"""
        from megatron_vr.grading.choice import judge

        N = 1_000_000
        units = [
            " ", "\n", "\t", "answer ", "answer: ", "answer is ", "answer is A or ", "answer\n",
            "option ", "the ", r"\boxed", r"\boxed{", r"\boxed{ ", "{", "}", "{}", "(", "((A", "$",
            "*", "\\", "\\\\", r"\text{", r"\text", "A", "A.", "A) ", "I ", "- ", "#", "\u200b",
            "\u2028", "é", "\ud800", ":", "=", "is ", ".", " .", "'",
        ]
        runs = [unit * (N // len(unit)) for unit in units]
        texts = ["answer is " + run for run in runs] + [r"\boxed{" + run + "}" for run in runs[:12]]
        texts += [r"\boxed" + " " * N, r"\boxed{" * 100_000 + "}" * 100_000, "B" + runs[0]]
        for text in texts:
            judge({"choices": ["one", "two", "three"]}, "B", text)
        print("judged", len(texts))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.startswith("judged"), run.stderr
