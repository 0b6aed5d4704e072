"""The rows of the results table: the run itself and each comparison, as settings of their own."""

from __future__ import annotations

import re

from megatron_vr.config.load import derive
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError

MAIN_ARM = "variational"
TAKEN = ("start", MAIN_ARM)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHARED = ("run", "parallel", "model", "problems", "prompts", "cluster")


def arms(settings: Settings) -> dict[str, Settings]:
    """Name → settings of every row, `variational` first.

    Raises SettingsError for a name that is taken and for a change that is not a setting.
    """
    rows = {MAIN_ARM: settings}
    for name, changes in settings.comparisons.items():
        if name in TAKEN:
            raise SettingsError(f"comparisons: the row name `{name}` is taken; choose another")
        if not NAME.fullmatch(name):
            raise SettingsError(
                f"comparisons: the row name `{name}` becomes a folder; use letters, digits, - and ."
            )
        where = f"comparisons.{name}"
        row = derive(settings, {**changes, "comparisons": {}}, where)
        for shared in SHARED:
            if getattr(row, shared) != getattr(settings, shared):
                raise SettingsError(
                    f"{where} changes `{shared}`, which the rows of a run share; make it a run of "
                    "its own"
                )
        rows[name] = row
    return rows
