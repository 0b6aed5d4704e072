"""Slurm's programs: the only place that calls them. Every call is bounded in time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megatron_vr.cluster.job_state import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    JobState,
    read_sacct,
    read_squeue,
)
from megatron_vr.errors import SettingsError, StageError

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
PING_SECONDS = 15.0
ASK_SECONDS = 60.0
SUBMIT_SECONDS = 120.0
UNKNOWN_JOB = "Invalid job id specified"
# Of a script's options, those that say nothing about what it asks of the cluster.
_QUIET = (
    *("job-name", "output", "error", "open-mode", "chdir", "signal", "kill-on-invalid-dep"),
    *("export", "propagate", "requeue", "ntasks-per-node", "comment"),
)
_OPTION = re.compile(r"#SBATCH\s+(--([a-z-]+)\S*.*)")


class Slurm:
    """The Slurm that `environment` (None: this process's) leads to."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = _cleaned(os.environ if environment is None else environment)

    @property
    def absent(self) -> str | None:
        """Why there is no Slurm on this host; None where its programs are."""
        path = self._environment.get("PATH")
        missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
        return (
            f"there is no Slurm on this host ({', '.join(missing)} not found)" if missing else None
        )

    @property
    def why_not(self) -> str | None:
        """Why Slurm cannot be asked anything now; None where it can."""
        if self.absent is not None:
            return self.absent
        try:
            done = self._call(["scontrol", "ping"], PING_SECONDS)
        except subprocess.TimeoutExpired:
            return f"Slurm does not answer (`scontrol ping` for {PING_SECONDS:.0f} s)"
        if re.search(rb"\bis UP\b", done.stdout):
            return None
        # A host without a configuration says so on the other stream.
        first = _words(done.stdout or done.stderr).split("; ")[0]
        return f"Slurm's controller does not answer ({first}); try again when it is back"

    def available(self) -> bool:
        """Whether Slurm can be asked."""
        return self.why_not is None

    def submit(self, script: Path, parents: Sequence[int] = ()) -> int:
        """Queue `script` to begin once all of `parents` have ended well; the new job's number.

        Raises StageError for a parent that Slurm's controller does not know: it would take it for
        done. Raises SettingsError with Slurm's words where it refuses.
        """
        known = {one.id for one in self._queued(parents)}
        unknown = [str(parent) for parent in parents if parent not in known]
        if unknown:
            raise StageError(
                f"{script.stem} is to wait for job {', '.join(unknown)}, which Slurm does not know "
                "(any more); nothing was submitted: run `megatron-vr submit` again"
            )
        after = ":".join(map(str, parents))
        dependency = [f"--dependency=afterok:{after}"] if parents else []
        command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes", *dependency, str(script)]
        return _number(self._sbatch(command, script), script)

    def test(self, script: Path) -> str:
        """What Slurm says to `script`: when and where it would run. Nothing is queued.

        Raises SettingsError with Slurm's words where it refuses.
        """
        done = self._sbatch(["sbatch", "--test-only", str(script)], script)
        return _words(done.stderr).removeprefix("sbatch: ")

    def probe(self, script: Path) -> None:
        """Queue `script` for later and take it back: whether Slurm takes it, now or when its nodes
        are back. `test` says no also where one of them is drained.

        Raises SettingsError with Slurm's words where it refuses.
        """
        command = ["sbatch", "--parsable", "--begin=now+1hour", "--job-name=vr-probe", str(script)]
        self.cancel([_number(self._sbatch(command, script), script)])

    def jobs(self, ids: Iterable[int]) -> dict[int, JobState]:
        """Those of the jobs `ids` that Slurm, or its accounting, still knows."""
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        found = {one.id: one for one in self._queued(wanted)}
        forgotten = [one for one in wanted if one not in found]
        return found | {one.id: one for one in self._accounted(forgotten) if one.id in forgotten}

    def named(self, prefix: str) -> dict[str, list[JobState]]:
        """The user's jobs whose name begins with `prefix`, by their whole name, oldest first.

        Also those that ended or were refused a while ago, as long as Slurm knows them.
        """
        found: dict[str, list[JobState]] = {}
        for one in sorted(self._queue([f"--user={os.getuid()}"]), key=lambda one: one.id):
            if one.name.startswith(prefix):
                found.setdefault(one.name, []).append(one)
        return found

    def cancel(self, ids: Iterable[int]) -> None:
        """End the jobs `ids`; what ended before is no error."""
        wanted = [str(one) for one in dict.fromkeys(ids)]
        if not wanted:
            return
        done = self._ask(["scancel", "--quiet", *wanted])
        # A job may end between the question and the order.
        words = [line for line in _words(done.stderr).split("; ") if UNKNOWN_JOB not in line]
        if done.returncode and any(words):
            raise StageError(f"Slurm does not end jobs {', '.join(wanted)}: {'; '.join(words)}")

    def _queued(self, ids: Sequence[int]) -> list[JobState]:
        """Those of the jobs `ids` that the controller has not forgotten."""
        return self._queue([f"--jobs={','.join(map(str, ids))}"]) if ids else []

    def _queue(self, filters: list[str]) -> list[JobState]:
        command = ["squeue", "--noheader", "--states=all", f"--Format={SQUEUE_FORMAT}", *filters]
        done = self._ask(command)
        if done.returncode:
            # Said where the only job asked for is not known.
            if UNKNOWN_JOB in _words(done.stderr):
                return []
            raise StageError(f"squeue failed: {_words(done.stderr)}")
        return list(read_squeue(done.stdout))

    def _accounted(self, ids: list[int]) -> list[JobState]:
        """From the accounting; nothing where a cluster has none."""
        if not ids or shutil.which("sacct", path=self._environment.get("PATH")) is None:
            return []
        wanted = ",".join(map(str, ids))
        options = ["--noheader", "--parsable2", "--allocations", f"--format={SACCT_FORMAT}"]
        # Without a beginning it tells of today's jobs alone.
        command = ["sacct", *options, "--starttime=now-90days", f"--jobs={wanted}"]
        try:
            done = self._call(command, ASK_SECONDS, times_as_seconds=True)
        except subprocess.TimeoutExpired:
            return []
        return [] if done.returncode else list(read_sacct(done.stdout))

    def _sbatch(self, command: list[str], script: Path) -> subprocess.CompletedProcess[bytes]:
        self._check()
        try:
            done = self._call(command, SUBMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise StageError(
                f"sbatch did not answer for {SUBMIT_SECONDS:.0f} s; whether {script} is queued is "
                "not known: run the same command again when Slurm answers, it sees what is queued"
            ) from None
        if done.returncode:
            raise SettingsError(
                f"Slurm refuses {script} ({_asked(script)}): {_words(done.stderr)}. Change "
                "`cluster` of the settings or the site file"
            )
        return done

    def _ask(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        self._check()
        try:
            return self._call(command, ASK_SECONDS, times_as_seconds=True)
        except subprocess.TimeoutExpired:
            raise StageError(
                f"{command[0]} did not answer for {ASK_SECONDS:.0f} s; try again later"
            ) from None

    def _check(self) -> None:
        """Where the controller is gone, ping tells at once, and everything else after a while."""
        why_not = self.why_not
        if why_not is not None:
            raise StageError(why_not)

    def _call(
        self, command: list[str], seconds: float, *, times_as_seconds: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        # Not for sbatch, whose environment the job inherits.
        more = {"SLURM_TIME_FORMAT": "%s"} if times_as_seconds else {}
        return subprocess.run(
            command,
            env=self._environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )


def _cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what changes the programs' answers, or is of a job in which this process runs.

    Jobs inherit the environment: the shape of that job must not become theirs. sbatch would take
    SBATCH_… before what a script asks for.
    """
    dropped: tuple[str, ...] = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SACCT_", "SLURM_TIME_FORMAT")
    if "SLURM_JOB_ID" in environment:
        dropped = (*dropped, "SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_")
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not name.startswith(dropped)
    }


def _number(done: subprocess.CompletedProcess[bytes], script: Path) -> int:
    """The job's number that `sbatch --parsable` printed."""
    number = done.stdout.decode(errors="replace").strip().split(";")[0]
    if not number.isdigit():
        raise StageError(f"sbatch printed {number!r} for {script}, which is no job's number")
    return int(number)


def _words(stderr: bytes) -> str:
    """What a program complained of, in one line."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return "; ".join(line.strip() for line in lines)


def _asked(script: Path) -> str:
    """The options of a script that say what it asks for."""
    found = _OPTION.findall(script.read_text(encoding="utf-8"))
    return " ".join(option.strip() for option, name in found if name not in _QUIET)
