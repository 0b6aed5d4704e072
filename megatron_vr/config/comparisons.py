"""The rows of the results table: the run itself and each comparison, as settings of their own."""

from __future__ import annotations

from megatron_vr.config.load import derive
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError

MAIN_ARM = "variational"
TAKEN = ("start", MAIN_ARM)


def arms(settings: Settings) -> dict[str, Settings]:
    """Name → settings of every row, `variational` first.

    Raises SettingsError for a name that is taken and for a change that is not a setting.
    """
    rows = {MAIN_ARM: settings}
    for name, changes in settings.comparisons.items():
        if name in TAKEN:
            raise SettingsError(f"comparisons: the row name `{name}` is taken; choose another")
        where = f"comparisons.{name}"
        rows[name] = derive(settings, {**changes, "comparisons": {}}, where)
    return rows
