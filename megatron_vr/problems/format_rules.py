"""A format folder: which files it has and what its format.yaml says."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from megatron_vr.errors import SettingsError
from megatron_vr.problems.nearest import suggestion

SHIPPED = Path(__file__).with_name("formats")
RULES_FILE = "format.yaml"
POLICY_FILE = "policy.jinja"
POSTERIOR = "posterior"


class Rules(BaseModel):
    """Base: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TraceMarkers(Rules):
    """Text before and after z; both are generated."""

    open: str
    close: str = Field(min_length=1)


class AnswerMarkers(Rules):
    """Text before and after y; both are generated. An empty `close`: the end token closes y."""

    open: str
    close: str


class FormatRules(Rules):
    """What format.yaml holds.

    `end` is the special token after y; `other_ends` end a generation too, where the tokenizer has
    them. `special_tokens` are those that templates and markers rely on. `answer_text` phrases a
    bare y' as y, by the problem's kind or `default`, with `{answer}` where y' goes.
    """

    trace: TraceMarkers
    answer: AnswerMarkers
    end: str = Field(min_length=1)
    other_ends: tuple[str, ...] = ()
    special_tokens: tuple[str, ...]
    answer_text: dict[str, str]

    @field_validator("answer_text")
    @classmethod
    def _phrases(cls, phrases: dict[str, str]) -> dict[str, str]:
        if "default" not in phrases:
            raise ValueError("it has no `default`")
        for kind, phrase in phrases.items():
            if phrase.count("{answer}") != 1:
                raise ValueError(f"`{kind}` must hold {{answer}} once, not {phrase!r}")
        return phrases

    def phrase(self, kind: str, answer: str) -> str:
        """y for a bare y' of a problem of this kind."""
        before, _, after = self.answer_text.get(kind, self.answer_text["default"]).partition(
            "{answer}"
        )
        return before + answer + after


def format_folder(name_or_folder: str) -> Path:
    """The folder of a shipped format or of the user's own.

    Raises SettingsError, with the nearest shipped names, where there is neither.
    """
    shipped = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())
    folder = SHIPPED / name_or_folder if name_or_folder in shipped else Path(name_or_folder)
    if not folder.is_dir():
        raise SettingsError(
            f"prompts.format is {name_or_folder!r}, neither a shipped format nor a folder; "
            f"{suggestion(name_or_folder, shipped)}"
        )
    return folder


def read_rules(folder: Path) -> FormatRules:
    """format.yaml of the folder. Raises SettingsError for a missing file or faulty content."""
    import yaml

    path = folder / RULES_FILE
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return FormatRules.model_validate(values)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; a format needs it") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise SettingsError(f"{path}: {faults}") from None


def posterior_file(folder: Path, name: str) -> Path:
    """The template `posterior-NAME.jinja`, or `posterior.jinja` for the name `posterior`.

    Raises SettingsError with the nearest names of templates in the folder.
    """
    found = {
        path.stem.removeprefix(f"{POSTERIOR}-"): path for path in folder.glob(f"{POSTERIOR}*.jinja")
    }
    if name not in found:
        raise SettingsError(
            f"prompts.posterior is {name!r}, but {folder} has no such template; "
            f"{suggestion(name, found)}"
        )
    return found[name]
