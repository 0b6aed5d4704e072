"""Jobs with rendered scripts whose megatron-vr is a few lines of bash, on a real Slurm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_vr.cluster.job import Job, Kind, RunFiles, Shape
from megatron_vr.cluster.script import render
from megatron_vr.config.load import load_settings
from megatron_vr.config.site_settings import SiteSettings
from tests.slurm.cluster import Cluster

TOY = Path(__file__).parents[2] / "examples/toy.yaml"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

# Each line of `events`: start (from 0), node, verb, what happened. The words after the verb are
# the command line. until_term CODE: as a command that saves on SIGTERM and ends with CODE.
FAKE = """#!/bin/bash
starts=${{SLURM_RESTART_COUNT:-0}}
verb=$1
note() {{ echo "$starts $SLURMD_NODENAME $verb $*" >> {events}; }}
until_term() {{
    trap "note TERM; sleep ${{2:-0}}; note saved; exit $1" TERM
    note ready
    while true; do sleep 0.2; done
}}
stage() {{
{stage}
}}
serve() {{
{serve}
}}
note "$@"
shift
"$verb" "$@"
"""


class Trial:
    """One job of `kind`; `stage` and `serve` are what megatron-vr does, in bash."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        stage: str,
        *overrides: str,
        kind: Kind = "ranks",
        serve: str = "exit 1",
        nodes: int = 2,
        time: str = "60",
        memory: str | None = "500M",
        flags: Sequence[str] = (),
        site: SiteSettings | None = None,
    ) -> None:
        self.cluster = cluster
        self.files = RunFiles(folder / "a run")
        shape = Shape(nodes, 1, 1, 2, memory, time, None, tuple(flags))
        self.job = Job("iteration-1/train", "train", kind, shape, (), folder / "a model")
        self._events = folder / "events"
        command = folder / "fake"
        command.write_text(FAKE.format(events=self._events, stage=stage, serve=serve))
        command.chmod(0o755)
        settings = load_settings(TOY, [f"run.folder={self.files.run}", *overrides])
        own = (site or SiteSettings()).model_copy(update={"command": str(command)})
        self.script = self.files.script(self.job)
        self.script.parent.mkdir(parents=True)
        self.files.log(self.job).parent.mkdir()
        self.script.write_text(
            render(self.job, self.files, settings, own, name="vr-1:train", folder=folder)
        )
        self.id = int(cluster.run("sbatch", "--parsable", self.script).stdout)

    @property
    def log(self) -> str:
        """What the job printed so far."""
        file = self.files.log(self.job, self.id)
        return file.read_text() if file.exists() else ""

    @property
    def last_words(self) -> str:
        """The last line of ours in the log; what Slurm adds to it begins with a program's name."""
        lines = self.log.splitlines()
        return [line for line in lines if not re.match(r"(srun|slurmstepd): |$", line)][-1]

    @property
    def events(self) -> list[str]:
        """What the fake commands noted."""
        return self._events.read_text().splitlines() if self._events.exists() else []

    def noted(self, pattern: str) -> list[str]:
        """The events that match `pattern`."""
        return [event for event in self.events if re.search(pattern, event)]

    def wait_for(self, pattern: str, count: int = 1, seconds: float = 60.0) -> None:
        """Until `count` events match."""
        self.cluster.wait_until(lambda: len(self.noted(pattern)) >= count, seconds)

    def end(self, seconds: float = 90.0) -> str:
        """The state in which the job ended."""
        self.cluster.wait_until(lambda: self.cluster.state(self.id) in ENDED, seconds)
        return self.cluster.state(self.id)

    def tell(self, signal: str) -> None:
        """What Slurm does before the time limit (USR1)."""
        self.cluster.run("scancel", "--batch", f"--signal={signal}", str(self.id))

    def shown(self, field: str) -> str:
        """A field of `scontrol show job`."""
        text = self.cluster.run("scontrol", "--oneliner", "show", "job", str(self.id)).stdout
        found = re.search(rf" {field}=(\S*)", text)
        assert found is not None, text
        return found[1]
