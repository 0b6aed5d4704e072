"""The errors a user can meet. Each carries the exit code the command ends with."""

from __future__ import annotations


class VRError(Exception):
    """Something failed while running; the message says what, where, and what to do."""

    exit_code = 1


class SettingsError(VRError):
    """The settings or the command line cannot be used; nothing was loaded or written."""

    exit_code = 2


class DataError(VRError):
    """A data set, table or row is not what it must be."""


class CheckpointError(VRError):
    """A checkpoint or model folder is missing, incomplete or of another model."""


class StageError(VRError):
    """A stage cannot start or resume as things are on disk."""


class Requeue(VRError):
    """The command was asked to stop and has saved; the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
