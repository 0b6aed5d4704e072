from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from random import Random

import pytest
from pydantic import ValidationError

from megatron_vr.errors import DataError
from megatron_vr.problems.problem import Problem, check_problems
from megatron_vr.problems.source_settings import ToySource
from megatron_vr.problems.tokenizer import load_tokenizer, save_tokenizer
from megatron_vr.problems.toy import MOVES, Grid, accepts, grid_of, trace_is_valid
from megatron_vr.problems.toy_source import toy_problems
from megatron_vr.problems.toy_tokenizer import SPECIAL_TOKENS, make_tokenizer


def toy(count: int, **settings: object) -> list[Problem]:
    return toy_problems(ToySource.model_validate({"kind": "toy", "count": count, **settings}))


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return toy(1500, references=1500, seed=3)


def every_way(grid: Grid, length: int) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """All move sequences of this length that stay on free cells to the goal, by walking each."""
    found = []
    for moves in product(MOVES, repeat=length):
        row, column = divmod(grid.start, grid.size)
        cells = []
        for move in moves:
            row, column = row + MOVES[move][0], column + MOVES[move][1]
            cell = row * grid.size + column
            if not (0 <= row < grid.size and 0 <= column < grid.size) or cell in grid.walls:
                break
            cells.append(cell)
        else:
            if cells[-1] == grid.goal:
                found.append((moves, tuple(cells)))
    return found


def test_the_verifier_accepts_exactly_the_shortest_ways_and_they_are_counted(
    problems: list[Problem],
) -> None:
    for problem in problems[:40]:
        grid = grid_of(problem.parameters)
        shortest = next(ways for n in range(1, 9) if (ways := every_way(grid, n)))
        length = len(shortest[0][0])
        if length > 5:
            continue
        right = {" ".join(moves) for moves, _ in shortest}
        for candidate in (
            " ".join(moves) for n in (length, 2) for moves in product(MOVES, repeat=n)
        ):
            accepted, reason = accepts(problem.parameters, candidate)
            assert accepted == (candidate in right), f"{problem.question}: {candidate}: {reason}"
        assert problem.answer_count == len(right)
        assert problem.answer in right


def test_reference_traces_are_the_cells_of_the_answer(problems: list[Problem]) -> None:
    for problem in problems:
        assert accepts(problem.parameters, problem.answer) == (True, "correct")
        assert problem.reference_trace is not None
        assert trace_is_valid(problem.parameters, problem.reference_trace)
        cell, cells = problem.parameters["start"], []
        for move in problem.answer.split():
            cell += MOVES[move][0] * 5 + MOVES[move][1]
            cells.append(f"c{cell}")
        assert problem.reference_trace == " ".join(cells)


def test_every_shortest_path_is_drawn_equally_often() -> None:
    grid = Grid(size=3, start=0, goal=8, walls=frozenset())
    random = Random(0)
    draws = Counter(" ".join(grid.random_path(random)[1]) for _ in range(6000))
    assert len(draws) == grid.path_counts[0] == 6
    # 5 standard deviations of a binomial with p = 1/6.
    assert all(abs(count - 1000) < 5 * (6000 * 5 / 36) ** 0.5 for count in draws.values()), draws


def test_paths_are_uniform_where_first_steps_lead_to_unequally_many() -> None:
    wide = Grid(size=4, start=0, goal=10, walls=frozenset({2}))
    counts = {move: wide.path_counts[near] for move, near in wide.closer(0).items()}
    assert counts == {"R": 2, "D": 3}
    random = Random(1)
    first = Counter(wide.random_path(random)[1][0] for _ in range(5000))
    assert abs(first["D"] - 3000) < 5 * (5000 * 0.6 * 0.4) ** 0.5, first


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("D D", "correct"),
        ("U D D D", "leaves the grid"),
        ("R L D D", "runs into the wall c1"),
        ("D", "end at c3, not at the goal c6"),
        ("", "end at c0"),
        ("D R L D", "4 moves; the shortest way has 2"),
        ("D X", "'X'"),
        ("D </think> D", "'</think>'"),
    ],
)
def test_a_refusal_says_why(answer: str, reason: str) -> None:
    grid = Grid(size=3, start=0, goal=6, walls=frozenset({1}))
    accepted, why = accepts(grid.parameters(), answer)
    assert accepted == (reason == "correct") and reason in why


@pytest.mark.parametrize(
    ("trace", "valid"),
    [
        ("c3 c6", True),
        ("c3 c4 c3 c6", True),
        ("c6", False),
        ("c3", False),
        ("c3 c6 c7", False),
        ("c1 c2", False),
        ("c3 d c6", False),
        ("", False),
    ],
)
def test_a_trace_is_valid_when_it_walks_to_the_goal(trace: str, valid: bool) -> None:
    grid = Grid(size=3, start=0, goal=6, walls=frozenset({1}))
    assert trace_is_valid(grid.parameters(), trace) is valid


def test_a_walk_does_not_wrap_around_the_grids_edge() -> None:
    grid = Grid(size=3, start=2, goal=3, walls=frozenset())
    assert not trace_is_valid(grid.parameters(), "c3")
    assert not accepts(grid.parameters(), "R")[0]


def test_puzzles_have_the_shares_of_bands_and_answers_of_the_published_task(
    problems: list[Problem],
) -> None:
    share = {band: n / len(problems) for band, n in Counter(p.band for p in problems).items()}
    several = sum(problem.answer_count > 1 for problem in problems) / len(problems)
    mean = sum(problem.answer_count for problem in problems) / len(problems)
    assert share == pytest.approx({"easy": 0.53, "mid": 0.28, "hard": 0.19}, abs=0.05)
    assert several == pytest.approx(0.57, abs=0.05)
    assert mean == pytest.approx(2.4, abs=0.2)


def test_settings_bound_walls_and_distance() -> None:
    for problem in toy(50, size=6, walls=(2, 4), min_distance=4, max_distance=5):
        grid = grid_of(problem.parameters)
        assert grid.size == 6 and 2 <= len(grid.walls) <= 4
        assert 4 <= grid.distances[grid.start] <= 5


def test_splits_never_share_a_question_whatever_the_seed() -> None:
    splits = {
        split: {p.question for seed in (1, 2) for p in toy(300, split=split, seed=seed)}
        for split in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["validation"]
    assert not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]


def test_a_larger_count_only_appends_and_references_change_nothing_else() -> None:
    few, many = toy(20, references=20), toy(60, references=5)
    for one, other in zip(few, many, strict=False):
        assert (one.id, one.question, one.answer) == (other.id, other.question, other.answer)
    assert [p.reference_trace is not None for p in many] == [True] * 5 + [False] * 55
    assert toy(20, seed=2)[0].question != few[0].question
    check_problems(many, "toy")


def test_a_puzzle_drawn_twice_is_kept_once_with_its_trace() -> None:
    problems = toy(20, size=2, walls=(0, 1), min_distance=1, references=5)
    assert len({problem.question for problem in problems}) == 20
    assert [p.reference_trace is not None for p in problems] == [True] * 5 + [False] * 15


def test_too_few_puzzles_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match=r"only \d+ of 15 puzzles"):
        toy(15, size=2, walls=(0, 1), min_distance=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walls": (8, 5)}, "fewest first"),
        ({"walls": (5, 24)}, "no room"),
        ({"references": 11}, "above count"),
        ({"min_distance": 9}, "max_distance"),
        ({"split": "dev"}, "train"),
        ({"wall": 3}, "wall"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        toy(10, **settings)


def test_the_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    # Beside a model's config, as in a release: the model's family must not choose another class.
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    loaded = load_tokenizer(tmp_path)
    text = "<bos> S c8 G c17 W c3 <think> c13 </think> U R D L <eos>"
    assert len(tokenizer) == 4 + 3 + 25 + len(SPECIAL_TOKENS) == len(loaded)
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.convert_ids_to_tokens(loaded(text).input_ids) == text.split()
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert "TokenizersBackend" not in (tmp_path / "tokenizer_config.json").read_text()
