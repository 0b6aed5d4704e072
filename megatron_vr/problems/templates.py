"""Prompt templates (Jinja), rendered once, with named places where data will go.

A template never sees a question or a hint: it is rendered with private markers in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.errors import SettingsError
from megatron_vr.problems.codec import Piece

# Private-use characters; the spaces outside make a filter such as `trim` noticeable.
_BEGIN, _END = " \ue000", "\ue001 "
_PLACE = re.compile(f"{_BEGIN}([a-z]+){_END}")


@dataclass(frozen=True)
class Template:
    """Text pieces, and data pieces that name the value to be filled in."""

    pieces: tuple[Piece, ...]

    def fill(self, values: Mapping[str, str]) -> Iterator[Piece]:
        """The pieces with `values`, as they are, in their places."""
        for piece in self.pieces:
            yield Piece(values[piece.text], True) if piece.is_data else piece


def read_template(path: Path, names: tuple[str, ...]) -> Template:
    """The template in `path`, which may extend or include others of its folder.

    It must insert each of `names` at least once and unaltered, as `{{ question }}`.
    Raises SettingsError for what is not so, and for faulty Jinja.
    """
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    if not path.is_file():
        raise SettingsError(f"there is no template {path}; a format needs it")

    environment = SandboxedEnvironment(
        loader=FileSystemLoader(path.parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    try:
        template = environment.get_template(path.name)
        text = template.render({name: f"{_BEGIN}{name}{_END}" for name in names})
    except Exception as error:  # a template is a program and can fail in any way
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise SettingsError(
            f"{where}: {type(error).__name__}: {error}; a value it may use is {' or '.join(names)}"
        ) from error
    pieces = tuple(_pieces(text))
    _check(path, pieces, names)
    return Template(pieces)


def _pieces(text: str) -> Iterator[Piece]:
    """Alternately text and names, as `re.split` gives them."""
    for index, part in enumerate(_PLACE.split(text)):
        if part:
            yield Piece(part, is_data=index % 2 == 1)


def _check(path: Path, pieces: tuple[Piece, ...], names: tuple[str, ...]) -> None:
    for piece in pieces:
        if not piece.is_data and ("\ue000" in piece.text or "\ue001" in piece.text):
            raise SettingsError(
                f"{path} alters a value; insert {' and '.join(names)} without a filter"
            )
    for name in names:
        if Piece(name, True) not in pieces:
            raise SettingsError(f"{path} does not insert {{{{ {name} }}}}; add it")
