"""The toy task: a shortest path in a walled grid. Its puzzles, texts and verifier.

Cell c{i} is at row i // size, column i % size. x names start, goal and walls, z the cells after
the start, y the moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Any

KIND = "toy-grid"
MOVES = {"U": (-1, 0), "R": (0, 1), "D": (1, 0), "L": (0, -1)}
LONGEST_EASY = 4


@dataclass(frozen=True)
class Grid:
    """One puzzle: `size` × `size` cells, some of them walls."""

    size: int
    start: int
    goal: int
    walls: frozenset[int]

    def question(self) -> str:
        """x: `S c8 G c17 W c3 c4`, walls in ascending order."""
        return " ".join(
            ["S", f"c{self.start}", "G", f"c{self.goal}", "W", *cells_text(sorted(self.walls))]
        )

    def step(self, cell: int, move: str) -> int | None:
        """The cell one `move` away, wall or not; None outside the grid."""
        return _steps(self.size)[cell].get(move)

    def ways(self, cell: int) -> dict[str, int]:
        """The moves that lead from `cell` to a cell without a wall."""
        near = _steps(self.size)[cell]
        return {move: reached for move, reached in near.items() if reached not in self.walls}

    @cached_property
    def distances(self) -> dict[int, int]:
        """Fewest moves from each cell to the goal, nearest first; no entry: no way."""
        found = {self.goal: 0}
        queue = [self.goal]
        steps = _steps(self.size)
        for cell in queue:
            for near in steps[cell].values():
                if near not in found and near not in self.walls:
                    found[near] = found[cell] + 1
                    queue.append(near)
        return found

    @cached_property
    def path_counts(self) -> dict[int, int]:
        """The number of shortest paths from each cell to the goal."""
        counts = {self.goal: 1}
        for cell in list(self.distances)[1:]:
            counts[cell] = sum(counts[near] for near in self.closer(cell).values())
        return counts

    def closer(self, cell: int) -> dict[str, int]:
        """The moves from `cell` that begin a shortest path, with the cells they lead to."""
        target = self.distances[cell] - 1
        return {
            move: near
            for move, near in self.ways(cell).items()
            if self.distances.get(near) == target
        }

    def band(self) -> str:
        """easy: no detour and at most 4 moves; mid: no detour; hard: walls force a detour."""
        rows = abs(self.start // self.size - self.goal // self.size)
        columns = abs(self.start % self.size - self.goal % self.size)
        distance = self.distances[self.start]
        if distance > rows + columns:
            return "hard"
        return "easy" if distance <= LONGEST_EASY else "mid"

    def random_path(self, random: Random) -> tuple[list[int], list[str]]:
        """A shortest path, each with the same probability: cells after the start, and moves."""
        cells: list[int] = []
        moves: list[str] = []
        cell = self.start
        while cell != self.goal:
            options = self.closer(cell)
            weights = [self.path_counts[near] for near in options.values()]
            [move] = random.choices(list(options), weights)
            cell = options[move]
            cells.append(cell)
            moves.append(move)
        return cells, moves

    def parameters(self) -> dict[str, Any]:
        """What the verifier needs, as JSON values."""
        return {
            "size": self.size,
            "start": self.start,
            "goal": self.goal,
            "walls": sorted(self.walls),
        }


@cache
def _steps(size: int) -> tuple[dict[str, int], ...]:
    """For each cell, the moves that stay inside the grid and where they lead."""

    def near(cell: int) -> dict[str, int]:
        places = {
            move: (cell // size + down, cell % size + right)
            for move, (down, right) in MOVES.items()
        }
        return {
            move: row * size + column
            for move, (row, column) in places.items()
            if 0 <= row < size and 0 <= column < size
        }

    return tuple(near(cell) for cell in range(size**2))


def cells_text(cells: Sequence[int]) -> list[str]:
    """The words for `cells`."""
    return [f"c{cell}" for cell in cells]


def grid_of(parameters: Mapping[str, Any]) -> Grid:
    """The puzzle that `Grid.parameters` describes."""
    return Grid(
        size=parameters["size"],
        start=parameters["start"],
        goal=parameters["goal"],
        walls=frozenset(parameters["walls"]),
    )


def accepts(parameters: Mapping[str, Any], answer_text: str) -> tuple[bool, str]:
    """Whether the moves `answer_text` (`D L D`) are a shortest path, and why (not).

    The moves must avoid walls, end at the goal and be as few as possible.
    """
    grid = grid_of(parameters)
    moves = answer_text.split()
    cell = grid.start
    for number, move in enumerate(moves, start=1):
        if move not in MOVES:
            return False, f"move {number} is {move!r}, not one of {' '.join(MOVES)}"
        reached = grid.step(cell, move)
        if reached is None:
            return False, f"move {number} ({move}) leaves the grid"
        if reached in grid.walls:
            return False, f"move {number} ({move}) runs into the wall c{reached}"
        cell = reached
    if cell != grid.goal:
        return False, f"the moves end at c{cell}, not at the goal c{grid.goal}"
    shortest = grid.distances[grid.start]
    if len(moves) != shortest:
        return False, f"{len(moves)} moves; the shortest way has {shortest}"
    return True, "correct"


def trace_is_valid(parameters: Mapping[str, Any], trace_text: str) -> bool:
    """Whether the cells `trace_text` (`c13 c12`) are a way from the start to the goal."""
    grid = grid_of(parameters)
    names = {f"c{cell}": cell for cell in range(grid.size**2)}
    cell = grid.start
    for word in trace_text.split():
        near = names.get(word)
        if near is None or near not in grid.ways(cell).values():
            return False
        cell = near
    return cell == grid.goal
