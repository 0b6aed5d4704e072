"""Where a trace first mentions an answer: hand-made traces with known places."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.traces.leaks import (
    choice_letter,
    first_mention,
    first_mentions,
    is_measured,
)

CHOICES = {"choices": ["12", "Paris", "a square number", "Rome or Milan", "no"]}
SECONDS = 40  # of CPU; a search in quadratic time takes minutes for any of the texts


def mention(trace: str, answer: str) -> float | None:
    return first_mention(trace, answer, "math", {})


def chosen(trace: str, answer: str = "C") -> float | None:
    return first_mention(trace, answer, "choice", CHOICES)


@pytest.mark.parametrize("place", [0, 1, 9, 10, 99])
def test_the_place_is_the_share_of_words_before_it(place: int) -> None:
    words = ["word"] * 100
    words[place] = "42"
    assert mention(" ".join(words), "42") == place / 100


def test_the_first_of_several_mentions_counts() -> None:
    assert mention("we get 7 , check : 7 or 7", "7") == 2 / 9


def test_signs_are_counted_as_words_and_layout_is_not() -> None:
    assert mention(r"**So**, we  find" "\n" r"$x = \boxed{\text{17}}$.", "17") == 6 / 8


@pytest.mark.parametrize(
    "said",
    [
        *("2", "2.", "2,", "(2)", "=2", "x=2", "$2$", "**2**", "2%", "2!", "2 cm", "2 + 3", "2°"),
        *(r"\boxed{2}", r"\(2\)", r"\text{2}", r"\$2", r"2\%", r"2\text{ cm}", r"2^\circ"),
        *(r"$\boxed{\text{2}}$", r"\left(2\right)", r"x=2\\y", "２", "5 - 2", "5-2"),
    ],
)
def test_two_is_mentioned(said: str) -> None:
    assert mention(f"so {said} it is", "2") is not None


@pytest.mark.parametrize(
    "said",
    [
        *("12", "2.5", "0.2", "1.2", "2,345", "1,002", "2x", "x2", "2nd", "-2", "−2", "(-2)"),
        *("x_2", "x_{2}", "x₂", "2^3", "2^{3}", "3^2", "3^{2}", "x²", "2/3", "2 / 3", "3/2", "½"),
        *(r"\sqrt{2}", "√2", r"\frac{1}{2}", r"\dfrac{2}{3}", r"2\pi", "2π", r"2\sqrt{3}", "two"),
        *(r"1\,002", "1{,}002", "２２", "2e5"),
    ],
)
def test_two_is_no_mention_as_a_part_of_something_else(said: str) -> None:
    assert mention(f"so {said} it is", "2") is None


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("PARIS", "Paris"),
        ("Paris", "paris."),
        ("Café", "cafe"),
        ("Cafe\u0301", "Café"),
        ("the  great\nwall", "The great wall"),
        ("1234567", "1,234,567"),
        (r"1{,}234{,}567.5", "1234567.5"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\tfrac{x}{y}", r"\dfrac{x}{y}"),
        ("1/2", r"\frac{1}{2}"),
        ("½", "1/2"),
        ("2π", r"2\pi"),
        ("√3", r"$\sqrt{3}$"),
        ("−7", "-7"),
        ("x²", "x^2"),
        ("x^{10}", "x^10"),
        ("( 1 , 2 )", "(1, 2)"),
        (r"5\text{ cm}", "5 cm"),
        ("“yes”", "yes"),
        ("don’t", "don't"),
        ("of\u200bfice", "o\ufb03ce"),
        ("(C) 3", r"\boxed{(C)\ 3}"),
    ],
)
def test_ways_of_writing_do_not_matter(said: str, answer: str) -> None:
    assert mention(f"well , {said} it is", answer) is not None


def test_words_are_whole() -> None:
    assert mention("the catalogue of cats", "cat") is None
    assert mention("a scattered cat", "cat") == 2 / 3
    assert mention("New York and York", "York") == 1 / 4
    assert mention("the new yorker", "New York") is None


def test_an_answer_that_never_comes_has_no_place() -> None:
    assert mention("nothing of the kind", "42") is None
    assert mention("", "42") is None
    assert mention("anything", "") is None
    assert mention("anything $$", "$ $") is None


def test_several_answers_are_looked_for_at_once() -> None:
    found = first_mentions("a b c d", ["c", "x", "a"], "math", {})
    assert found == [2 / 4, None, 0.0]


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        ("So the answer is C because of this", 2 / 8),
        ("I take option C now", 2 / 5),
        ("(C) looks right", 0.0),
        ("so (c) it is", 1 / 6),
        ("Answer: **C**", 0.0),
        (r"we box \boxed{\text{C}} here", 2 / 4),
        ("it is a square number then", 2 / 6),
        ("a square number, so the answer is C", 0.0),
        ("C is a letter", None),
        ("the answer is Careful thought", None),
        ("the answer is a matter of taste", None),
        ("the answer is B or (A)", None),
        ("f(c) is zero", None),
    ],
)
def test_a_choice_is_stated_and_not_just_a_letter(trace: str, place: float | None) -> None:
    assert chosen(trace) == place
    assert chosen(trace, "a square number") == place, "the answer given by its text"


def test_a_letter_as_the_text_of_a_choice_is_no_text() -> None:
    assert first_mention("a cat", "A", "choice", {"choices": ["a", "b"]}) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("C", "C"), ("c", "C"), ("(C)", "C"), ("PARIS", "B"), ("F", None), ("London", None)],
)
def test_a_choice_is_known_by_letter_or_text(answer: str, letter: str | None) -> None:
    assert choice_letter(answer, CHOICES) == letter


def test_the_toy_tasks_answer_is_a_whole_run_of_moves() -> None:
    def moves(trace: str) -> float | None:
        return first_mention(trace, "R R D L", "toy-grid", {})

    assert moves("R R D L c1 c2") == 0.0
    assert moves("RRDL c1 c2") == 0.0
    assert moves("c1 c2 RR DL") == 2 / 4
    assert moves("c1 c2 c3") is None, "cells are the derivation"
    assert moves("R R D L U c1") is None
    assert moves("D R R D L c1 R R D L") == 6 / 10


def test_nothing_is_measured_for_code_or_for_answers_without_words() -> None:
    assert first_mention("def f(): pass", "def f(): pass", "code", {}) is None
    assert not is_measured("def f(): pass", "code", {})
    assert not is_measured("$ $", "math", {})
    assert not is_measured("...", "math", {})
    assert not is_measured("London", "choice", CHOICES)
    assert not is_measured("A", "choice", {})
    assert not is_measured("c1 c2", "toy-grid", {})
    assert is_measured("42", "math", {})
    assert is_measured("42", "my.package:judge", {})
    assert is_measured("Paris", "choice", CHOICES)
    assert is_measured("R D", "toy-grid", {})


PIECES = (
    *("2", "17", "1,234", "x", "Paris", "é", "ß", "½", "²", "π", "+", "-", "=", "(", ")", "[", "|"),
    *(r"\frac{1}{2}", r"\sqrt{3}", r"\boxed{4}", "^2", "_1", "/", "$", "{", "}", ", ", " ", "\n"),
)


TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
MOVES = st.text("URDL", min_size=1, max_size=8)


@given(answer=TEXTS, rest=TEXTS, moves=MOVES, letter=st.sampled_from("ABCDE"))
def test_a_trace_that_begins_with_the_answer_has_it_at_zero(
    answer: str, rest: str, moves: str, letter: str
) -> None:
    for kind in ("math", "reasoning-gym"):
        if is_measured(answer, kind, {}):
            assert first_mention(f"{answer} so {rest}", answer, kind, {}) == 0.0
    assert first_mention(f"{moves} c1 c2", " ".join(moves), "toy-grid", {}) == 0.0
    assert first_mention(f"({letter}) {rest}", letter, "choice", CHOICES) == 0.0


@given(words=st.lists(st.sampled_from(PIECES), max_size=30), answer=TEXTS)
def test_a_place_is_in_the_trace(words: list[str], answer: str) -> None:
    place = first_mention(" ".join(words), answer, "math", {})
    assert place is None or 0.0 <= place < 1.0


UNITS = (
    *("a", "a ", "1", "1,", "111,", "1.", ".", "-1", " ", "\n", "\\", "{", "}{", "^{", "_", "'a"),
    *("\\frac{", "\\frac{1}{", "\u0300\u0327", "\ufdfa", "\x00\x01", "½", "answer is "),
    *("\\boxed{", "(a", "U", "U ", "option \\texta"),
)
HOSTILE = [*(("answer", unit) for unit in UNITS), ("\\big", "g"), ("\\text", "a"), ("\\", "a")]


def test_a_long_text_of_anything_is_read_in_linear_time() -> None:
    program = """
        import json, resource, sys
        from megatron_vr.traces.leaks import first_mention
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
        for start, unit in json.loads(sys.argv[1]):
            text = start + unit * (400_000 // len(unit.encode())) + "!"
            half = text[: len(text) // 2] + "?"
            first_mention(text, half, "math", {})
            first_mention(text, "A", "choice", {"choices": [half, "b"]})
            first_mention(text, half, "toy-grid", {})
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), json.dumps(HOSTILE), str(SECONDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done\n"
