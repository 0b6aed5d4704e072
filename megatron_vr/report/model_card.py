"""The model card (README.md) of an exported model: facts in, Markdown out. Pure.

Whatever a run says of itself is data: it is escaped, and never runs as template code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_vr.config.settings import Settings, TrainSettings
from megatron_vr.errors import CheckpointError
from megatron_vr.problems.codec import Piece
from megatron_vr.report.results import Score
from megatron_vr.report.wording import amount, decimal, listed, policy_name

TEMPLATE = "model_card.md"
LICENCE_KEYS = ("license", "license_name", "license_link")

_MARKUP = re.compile(r"([\\`*_\[\]<>|~$&#!])")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_PLACE = re.compile(r"(~|/|\.{1,2}/|[A-Za-z]:\\|[A-Za-z][A-Za-z0-9+.-]*://)")
_SECRET_KEY = re.compile(r"(?i)(.*[_-])?(token|secret|password|passwd|key|credentials?)")
_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}")
REMOVED = "(removed)"


@dataclass(frozen=True)
class Base:
    """The model that the run started from.

    `name`: its id on the hub, the last component of its folder, or a random model's shape in
    words. `licence`: what its own card states, by LICENCE_KEYS; empty where it states none.
    """

    kind: Literal["hub", "folder", "random"]
    name: str
    licence: Mapping[str, Any]


@dataclass(frozen=True)
class QuestionSet:
    """One of train, validation and test: its sources in words, its counts where they are known."""

    name: str
    sources: tuple[str, ...]
    questions: int | None = None
    with_reference: int | None = None


@dataclass(frozen=True)
class ResultRow:
    """A row of the results: what it learns from, a score per metric, whether it is this model."""

    name: str
    about: str
    scores: tuple[Score | None, ...]
    mine: bool


@dataclass(frozen=True)
class ResultTable:
    """The rows' scores on `questions` held-out questions: all of them, or the band `scope`."""

    scope: str
    questions: int
    metrics: tuple[str, ...]
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True)
class CardFacts:
    """Everything a card says.

    `settings` are those of the row `arm`; `prompt` is the policy's, the question's place being
    data; `end` is the text of the token that ends an output; `tables` are empty before anything
    was evaluated; `local` are the strings of the settings that name files or folders of the
    machine.
    """

    repo: str
    arm: str
    about: str
    iteration: int
    settings: Settings
    base: Base
    data: tuple[QuestionSet, ...]
    prompt: tuple[Piece, ...]
    end: str
    tables: tuple[ResultTable, ...]
    not_evaluated: tuple[str, ...]
    versions: Mapping[str, str]
    local: frozenset[str] = frozenset()

    @property
    def evaluated(self) -> bool:
        """Whether this model's own results are known."""
        return any(row.mine for table in self.tables for row in table.rows)


class Markdown(str):
    """Text that is Markdown already."""


def render(facts: CardFacts) -> str:
    """The card, with its front matter."""
    environment = Environment(
        loader=PackageLoader("megatron_vr.report"),
        finalize=lambda value: value if isinstance(value, Markdown) else plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "decimal": decimal,
        "fence": fence,
        "literal": lambda value: Markdown(repr(value)),
        "verbatim": Markdown,
        "name": _last,
        "amount": amount,
        "listed": listed,
        "length": length,
        "policy_name": policy_name,
    }
    front = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True)
    settings = yaml.safe_dump(public_settings(facts), sort_keys=False, allow_unicode=True)
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        s=facts.settings,
        front_matter=Markdown(front),
        settings=settings,
        licence=_licence_text(facts.base.licence),
    )


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """The card's metadata, in the hub's keys."""
    base = {"base_model": facts.base.name} if facts.base.kind == "hub" else {}
    return {
        **base,
        **facts.base.licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["megatron-vr", "variational-reasoning"],
    }


def stated_licence(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card's front matter states the licence; empty where nothing does."""
    if not metadata.get("license"):
        return {}
    return {key: metadata[key] for key in LICENCE_KEYS if metadata.get(key)}


def read_front_matter(card: str, where: str) -> dict[str, Any]:
    """The metadata at the top of a model card; empty without any.

    Raises CheckpointError, naming `where`, for what is not YAML.
    """
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t\r]*$", card, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise CheckpointError(
            f"the front matter of {where} is not YAML, so its licence is not known ({told}); "
            "correct it"
        ) from None
    return metadata if isinstance(metadata, dict) else {}


def public_settings(facts: CardFacts) -> dict[str, Any]:
    """The settings as plain values: paths cut to their last component, secrets removed."""
    tree: dict[str, Any] = _public(facts.settings.model_dump(), facts.local)
    tree["prompts"]["format"] = _last(facts.settings.prompts.format)
    if facts.settings.model.path is not None:
        tree["model"]["path"] = facts.base.name
    return tree


def plain(value: object) -> Markdown:
    """Text that Markdown shows as it is, on one line, also in a table."""
    text = _CONTROL.sub("\ufffd", " ".join(str(value).split()))
    return Markdown(_MARKUP.sub(r"\\\1", text))


def fence(text: str, language: str) -> Markdown:
    """A block of code that nothing in `text` ends."""
    runs = (len(run) for run in re.findall("`+", text))
    marks = "`" * max(3, 1 + max(runs, default=0))
    return Markdown(f"{marks}{language}\n{text.strip()}\n{marks}")


def length(train: TrainSettings) -> str:
    """How long a training is and how large its steps are."""
    told = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    rate = train.optimizer.learning_rate
    return f"{told} of {amount(train.batch_size, 'example')}, learning rate {rate:g}"


def _public(value: Any, local: frozenset[str], key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_public(k, local): _public(inner, local, str(k)) for k, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inner, local, key) for inner in value]
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, str) and (_SECRET_KEY.fullmatch(key) or _SECRET.search(value)):
        return REMOVED
    if isinstance(value, str) and (value in local or _PLACE.match(value)):
        return _last(value)
    return value


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _licence_text(licence: Mapping[str, Any]) -> str:
    stated = licence.get("license", "")
    names = [str(name) for name in stated] if isinstance(stated, list) else [str(stated)]
    more = [str(licence[key]) for key in LICENCE_KEYS[1:] if key in licence]
    return listed(names) + (f" ({', '.join(more)})" if more else "")
