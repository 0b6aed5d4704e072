"""Whether the kernel has killed for want of memory: its counter, read at launch and at the end.

In the cgroup of this process and of those that it starts: `oom_kill` in memory.events (v2) or
memory.oom_control (v1). The kernel counts before it kills, whatever limit was met: the job's or
the host's.
"""

from __future__ import annotations

from pathlib import Path

OF_HOST = Path("/proc/vmstat")  # counts too where no cgroup does


def oom_counter() -> Path:
    """The file with the counter that is nearest to this process."""
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for file in counter_files(own, mounts):
        if file.is_file() and parse_kills(file.read_text(encoding="utf-8")) is not None:
            return file
    return OF_HOST


def oom_kills(counter: Path) -> int:
    """How many processes were killed for want of memory; 0 where `counter` has no such line."""
    return parse_kills(counter.read_text(encoding="utf-8")) or 0


def parse_kills(text: str) -> int | None:
    """The number of the line `oom_kill N`, which all three kinds of file have in common."""
    lines = (line.split() for line in text.splitlines())
    return next((int(words[1]) for words in lines if words[:1] == ["oom_kill"]), None)


def counter_files(own: str, mounts: str) -> list[Path]:
    """Files that may hold the counter, from a process's own cgroup upwards.

    `own` is the text of /proc/self/cgroup (`ID:CONTROLLERS:PATH`; v2 has ID 0), `mounts` of
    /proc/self/mountinfo. A leaf of v2 may be without memory's controller: the next above counts.
    """
    fields = [line.split(":", 2) for line in own.splitlines()]
    v1 = [path for _, names, path in fields if "memory" in names.split(",")]
    v2 = [path for number, names, path in fields if number == "0" and not names]
    found: list[Path] = []
    for line in mounts.splitlines():
        # ID PARENT DEVICE ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE SUPER_OPTIONS
        before, _, after = (part.split() for part in line.partition(" - "))
        root, point = before[3:5]
        kind, options = after[0], after[-1].split(",")
        if kind == "cgroup" and "memory" in options:
            found += _upwards(v1, root, Path(point), "memory.oom_control")
        elif kind == "cgroup2":
            found += _upwards(v2, root, Path(point), "memory.events")
    return found


def _upwards(paths: list[str], root: str, point: Path, file: str) -> list[Path]:
    """`file` in the folders of `paths` and above, in the hierarchy whose `root` is at `point`."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_relative_to(root):
            folder = path.relative_to(root)
            found += [point / place / file for place in (folder, *folder.parents)]
    return found
