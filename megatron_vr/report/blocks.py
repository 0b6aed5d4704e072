"""What a page is made of, as data; the template turns it into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Mark = Literal["", "best", "close"]
SHADES = 4  # of each of a token's two colours


@dataclass(frozen=True)
class Heading:
    """A title within a section."""

    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph; `tone` sets it apart: a plain one, a quiet note, or one the reader must see."""

    text: str
    tone: Literal["plain", "quiet", "warning"] = "plain"


@dataclass(frozen=True)
class Missing:
    """Said where a table is not there yet."""

    text: str


@dataclass(frozen=True)
class Cell:
    """One table cell: its text, a smaller one under it (an error), and how it is set apart."""

    text: str
    small: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Line:
    """A table row: its name, a colour where the row has one, a word on it, and the cells."""

    name: str
    cells: Sequence[Cell]
    colour: str = ""
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Column heads in groups `(name, columns of the group)`, and the lines; cells of `words` or
    numbers."""

    groups: Sequence[tuple[str, Sequence[str]]]
    lines: Sequence[Line]
    caption: str = ""
    corner: str = ""
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A plot: `name`.png beside the page, embedded in it; `alt` says it in words."""

    name: str
    png: bytes
    alt: str

    @property
    def width(self) -> int:
        """Pixels on the page: half the PNG's own, from its header."""
        return int.from_bytes(self.png[16:20], "big") // 2


@dataclass(frozen=True)
class Box:
    """A framed list of statements under a title."""

    title: str
    points: Sequence[str]


@dataclass(frozen=True)
class Links:
    """Other pages, as (text, address relative to this page)."""

    title: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Preformatted text, folded under its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Token:
    """A piece of a trace; `tint` in [-1, 1] colours it, None leaves it plain; `tip` on hovering."""

    text: str
    tint: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Trace:
    """One trace in full, with what is known of it; `weight` is 0 to 1."""

    facts: Sequence[tuple[str, str]]
    tokens: Sequence[Token]
    weight: float


@dataclass(frozen=True)
class TraceCard:
    """A question and some of its traces."""

    question: str
    hint: str
    band: str
    traces: Sequence[Trace]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when their title is opened."""

    title: str
    blocks: Sequence[Block]


Block = Heading | Words | Missing | Table | Picture | Box | Links | Code | TraceCard | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its navigation."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
