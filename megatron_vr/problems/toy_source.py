"""Generated problems of the toy task."""

from __future__ import annotations

from random import Random

from megatron_vr.errors import DataError
from megatron_vr.problems.problem import Problem, question_id
from megatron_vr.problems.source_settings import Split, ToySource
from megatron_vr.problems.toy import KIND, Grid, cells_text

# Draws per wanted problem after which the settings are taken to allow no more puzzles.
PATIENCE = 2000


def toy_problems(source: ToySource) -> list[Problem]:
    """`count` distinct puzzles of the split; the same settings give the same ones.

    A larger `count` only appends. Raises DataError when the settings allow too few puzzles.
    """
    random = Random(source.seed)
    problems: dict[str, Problem] = {}
    for _ in range(PATIENCE * source.count):
        grid = _draw(source, random)
        question = grid.question()
        if split_of(question) != source.split or question in problems or not _fits(grid, source):
            continue
        with_trace = len(problems) < source.references
        problems[question] = _problem(grid, source, with_trace)
        if len(problems) == source.count:
            return list(problems.values())
    raise DataError(
        f"toy source: only {len(problems)} of {source.count} puzzles found with size "
        f"{source.size}, walls {source.walls} and distances {source.min_distance} to "
        f"{source.max_distance}; allow more or lower `count`"
    )


def split_of(question: str) -> Split:
    """The one split that may hold `question`: 80% train, 10% validation, 10% test, by its id."""
    tenth = int(question_id(question), 16) % 10
    if tenth == 9:
        return "test"
    return "validation" if tenth == 8 else "train"


def _draw(source: ToySource, random: Random) -> Grid:
    walls = random.randint(*source.walls)
    start, goal, *rest = random.sample(range(source.size**2), walls + 2)
    return Grid(source.size, start, goal, frozenset(rest))


def _fits(grid: Grid, source: ToySource) -> bool:
    distance = grid.distances.get(grid.start)
    return distance is not None and source.min_distance <= distance <= source.max_distance


def _problem(grid: Grid, source: ToySource, with_trace: bool) -> Problem:
    question = grid.question()
    # A stream of its own, so that the path does not depend on what was drawn before.
    cells, moves = grid.random_path(Random(f"{source.seed} {question}"))
    return Problem(
        id=question_id(question),
        question=question,
        answer=" ".join(moves),
        kind=KIND,
        parameters=grid.parameters(),
        source=f"toy:{source.split}",
        band=grid.band(),
        reference_trace=" ".join(cells_text(cells)) if with_trace else None,
        answer_count=grid.path_counts[grid.start],
    )
